"""The result of shuffling features at test time: its tables, its summary, and one row of it.

Apart from measuring, and from the figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from matplotlib.figure import Figure

from analysis.judging import Judged, Measures
from analysis.readings import FINAL
from analysis.result import ReadBack, Row
from analysis.shuffle_cells import Cell, Which
from analysis.shuffling import How, Place
from surgeon.errors import AnalysisError
from surgeon.table import table

LITTLE = 0.01  # a drop the summary calls small: one point
UNTOUCHED = "untouched"


class SpatialDependence(ReadBack):
    """What shuffling features costs; prints as a table, draws as the paper's Figures 4, 6 and 7.

    Attributes:
        primary: "accuracy" of classifiers, "ap" of detectors.
        units: Names of the units that were shuffled, in order of call.
        complete: False where Ctrl-C ended it.
    """

    kind = "spatial_dependence"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"Spatial dependence of {settings['model']}", rows, summary, settings)
        self.primary, self.units = str(settings["primary"]), [str(name) for name in settings["units_shuffled"]]
        self.complete = bool(settings["complete"])

    def figure(self) -> Figure:
        """Accuracy against the unit shuffled alone, and against the share of last units shuffled together."""
        from analysis.spatial_figure import draw

        return draw(self)

    def row(self, unit: str | int, shuffle: str = "spatial", patch: int | None = None, which: Which = "alone") -> Row:
        """One row.

        Args:
            unit: Name of a unit shuffled alone, or how many last ones are shuffled together.
            shuffle: "spatial", "patch" or "channel".
            patch: Side of the cells in pixels.
            which: "alone", or "last" where ``unit`` is a number.

        Raises:
            AnalysisError: When it was not measured.
        """
        last = which == "last" or isinstance(unit, int)
        wanted = ("last" if last else "alone", shuffle, patch, unit)
        for row in self.rows:
            place = row["units_shuffled"] if isinstance(unit, int) else row["unit"]
            if (row["which"], row["shuffle"], row["patch_px"], place) == wanted:
                return row
        raise AnalysisError(f"{wanted} was not measured; see which, shuffle, patch_px and unit in .rows")

    def tail(self, shuffle: str = "spatial", patch: int | None = None, tolerance: float = LITTLE) -> int:
        """How many last units can be shuffled together at a drop of at most ``tolerance``; no later one costs more."""
        count = 0
        for row in self.rows:
            if (row["which"], row["shuffle"], row["patch_px"]) == ("last", shuffle, patch):
                if row["drop"] is None or row["drop"] > tolerance:
                    break
                count = row["units_shuffled"]
        return count

    def __str__(self) -> str:
        return "\n".join([self.title, *self._tables(), self.summary])

    __repr__ = __str__

    def _tables(self) -> Iterator[str]:
        for which in get_args(Which):
            rows = [row for row in self.rows if row["which"] == which]
            if not rows:
                continue
            columns = list(dict.fromkeys(How(row["shuffle"], row["patch_px"]).name for row in rows))
            lines: dict[str, dict[str, str]] = {}
            for row in rows:
                key = row["unit"] if which == "alone" else f"last {row['units_shuffled']} ({row['units_share']:.0%})"
                words = "-" if row[self.primary] is None else f"{100 * row[self.primary]:.2f}%"
                lines.setdefault(key, {})[How(row["shuffle"], row["patch_px"]).name] = words
            head = [f"{self.primary}, shuffled {'alone' if which == 'alone' else 'together'}", *columns]
            yield table(head, [[key, *(line.get(c, "-") for c in columns)] for key, line in lines.items()])


def rows_of(cells: Sequence[Cell], held: Mapping[str, Sequence[Place]], measures: Measures) -> list[Row]:
    """The untouched net, then every cell.

    Args:
        cells: Of a scan.
        held: Places by unit.
        measures: Of that scan.
    """
    nothing = {"unit": UNTOUCHED, "which": "none", "units_shuffled": 0, "units_share": 0.0}
    nothing |= {"shuffle": "none", "patch_px": None, "map_px": None}
    rows = [{**nothing, **_figures(measures.of("", FINAL)), "note": ""}]
    for cell in cells:
        side = max(place.side for name in cell.units for place in held[name])
        where = {"unit": cell.units[0], "which": cell.which, "units_shuffled": len(cell.units)}
        how = {"shuffle": cell.how.kind, "patch_px": cell.how.patch, "map_px": side}
        judged = measures.of(cell.part, cell.treatment)
        same = "" if cell.treatment == cell.how.name else f"as {cell.treatment}: both reach over every map"
        still = "no map is larger than 1x1" if side == 1 and cell.how.kind != "channel" else same
        rows.append({**where, "units_share": cell.share, **how, **_figures(judged), "note": still})
    return rows


def _figures(judged: Judged) -> Row:
    """Columns of what was measured: accuracy of classifiers, AP of detectors."""
    value, (low, high) = judged.value, judged.interval or (None, None)
    below, above = judged.difference_interval or (None, None)
    name = judged.primary
    if name == "error":
        name, value = "accuracy", None if value is None else 1 - value
        low, high = (None if end is None else 1 - end for end in (high, low))
    return {
        **{"passes": judged.draws, "images": judged.images, name: value},
        **{f"{name}_low_95": low, f"{name}_high_95": high, **judged.means},
        **{"drop": judged.difference, "drop_low_95": below, "drop_high_95": above, "sd_over_passes": judged.spread},
    }


def summary_of(result: SpatialDependence) -> str:
    """What one shuffled unit costs, and how many last ones cost little, in one sentence."""
    first, name = result.rows[0], result.primary
    low, high = (first[f"{name}_{end}_95"] for end in ("low", "high"))
    words = [f"{first['images']} images, untouched {name} {_percent(first[name])}"]
    words[0] += "" if low is None else f" ({_percent(low)} to {_percent(high)})"
    ways = _ways(result.rows)
    for how in [way for way in ways if way[0] != "patch"] or ways:
        mine = [row for row in result.rows if (row["shuffle"], row["patch_px"]) == how and row["drop"] is not None]
        said = []
        if alone := sorted((row for row in mine if row["which"] == "alone"), key=lambda row: float(row["drop"])):
            least, most = alone[0], alone[-1]
            said.append(f"of one unit costs {_points(least)} ({least['unit']}) to {_points(most)} ({most['unit']})")
        if any(row["which"] == "last" for row in mine):
            count, total = result.tail(*how), len(result.units)
            some = f"of the last {count} of {total} ({count / total:.0%}) at most 1 point"
            said.append(some if count else "of the last one more than 1 point")
        if said:
            words.append(f"{How(*how).name} shuffle {', '.join(said)}")
    return "; ".join(words) + "."


def _ways(rows: Sequence[Row]) -> list[tuple[str, int | None]]:
    return list(dict.fromkeys((row["shuffle"], row["patch_px"]) for row in rows if row["which"] != "none"))


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2%}"


def _points(row: Row) -> str:
    return f"{100 * row['drop']:.1f} points"
