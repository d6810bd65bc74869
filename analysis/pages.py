"""One HTML page of one or several results: figures, tables, settings, and the command and versions behind them.

Apart from the results so that all of them are reported alike; the look lies in ``templates/report.html``. A page needs
no other file and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from analysis import bars, curves
from analysis.comparing import Comparison
from analysis.gridding import distance_grids, joint_grid, mean_grid, robustness_grid
from analysis.grids import FULL, PERCENT, UNTOUCHED, Grid, number
from analysis.listing import Listing, listed
from analysis.result import Result, Row, versions
from analysis.seeds import by_seed, seed_of
from analysis.stored import DRAWN, StoredResult
from analysis.vector import figure_png, figure_svg, grid_maps
from surgeon.errors import AnalysisError
from surgeon.storage import replace_file

TEMPLATES = Path(__file__).parent / "templates"
VERDICTS = ("robust", "critical", "undecided")
TITLES = {
    "robustness": "layer-wise robustness",
    "joint_robustness": "joint robustness",
    "search_joint": "search for a joint set",
    "joint_search": "search for a joint set",
}


@dataclass
class Picture:
    """One figure of a section: markup, or maps the template draws; and what is to be said below it."""

    heading: str
    markup: str = ""
    maps: list[dict[str, Any]] = field(default_factory=list)
    marks: tuple[str, ...] = ()
    label: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class Section:
    """What the template shows of one result."""

    result: Result
    name: str
    kind: str
    seed: str
    source: str
    pictures: list[Picture]
    counts: list[Row]
    listing: Listing
    settings: list[tuple[str, str]]
    command: str
    versions: str
    partial: bool
    troubles: list[str]


def write_report(
    results: Sequence[Result], path: str | Path, title: str | None = None, notes: Sequence[str] = ()
) -> Path:
    """Write one or several results into one HTML file.

    Results of the same analysis that differ in nothing but their seed get a heatmap of their mean, and stand folded
    below it.

    Args:
        results: Of any kinds, measured just now or read back by ``read_result``.
        path: Of the HTML file; its folder is made where it is missing.
        title: Of the page; by default that of the only result, or their number.
        notes: Sentences said at the top, of files that could not be read for instance.

    Raises:
        AnalysisError: When there is no result, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> found = StoredResult("shift_sparsity", "Shifts", [{"layer": "a", "sparsity": 0.5}], "half stay")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = write_report([found], Path(folder) / "report.html").read_text()
        >>> "half stay" in text and "<svg" in text
        True
    """
    if not results:
        raise AnalysisError("a report of no result was asked for; give at least one")
    groups = by_seed(results)
    count = 0
    chapters: list[dict[str, Any]] = []
    for several in groups:
        sections = [_section(result, f"{count + i + 1}") for i, result in enumerate(several)]
        count += len(sections)
        chapters.append({"sections": sections, "mean": _mean(several, sections), "name": f"c{len(chapters) + 1}"})
    heading = title or (results[0].title if len(groups) == 1 else f"{len(results)} results")
    loader = jinja2.FileSystemLoader(TEMPLATES)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = page.get_template("report.html").render(title=heading, chapters=chapters, notes=notes, written=versions())
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(path), text.encode(errors="replace"))
    except OSError as error:
        raise AnalysisError(f"{path} cannot be written: {error.strerror}; name a file in a folder of yours") from error
    return Path(path)


def _section(result: Result, name: str) -> Section:
    settings = {key: value for key, value in result.settings.items() if key not in ("command", "versions", "drawn")}
    own = result.settings.get("versions", "")
    pictures, troubles = _pictures(result, name)
    return Section(
        result,
        name,
        TITLES.get(result.kind, result.kind.replace("_", " ")),
        seed_of(result),
        result.source if isinstance(result, StoredResult) else "",
        pictures,
        _counts(result) if result.kind == "robustness" else [],
        listed(result.rows),
        [(key, _words(value)) for key, value in settings.items()],
        str(result.settings.get("command") or ""),
        _words(own),
        result.settings.get("complete") is False,
        troubles,
    )


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _pictures(result: Result, name: str) -> tuple[list[Picture], list[str]]:
    """The figures of a result; what cannot be drawn is said instead."""
    try:
        return _drawn(result, name), []
    except AnalysisError as error:
        return [], [f"No figure: {error}."]


def _drawn(result: Result, name: str) -> list[Picture]:
    if result.kind == "robustness":
        grid = robustness_grid(result)
        what = "Error" if grid.bright_is_high else "Average precision"
        error = _heatmap(grid, f"{what} by unit and treatment")
        line = figure_svg(curves.lines(result), f"lines{name}", "one line per unit; the table has the numbers")
        far = [
            _heatmap(grid, "Distance of the weights" if not i else "") for i, grid in enumerate(distance_grids(result))
        ]
        return [error, Picture(f"{what} by treatment", line), *far]
    if result.kind == "joint_robustness":
        return [_heatmap(joint_grid(result), "Groups by treatment")]
    if result.kind in ("joint_search", "search_joint"):
        drawn = figure_svg(curves.curve(result), f"curve{name}", "the price against the share of parameters re-set")
        return [Picture("Parameters re-set together, and the price", drawn)]
    if result.kind in DRAWN:
        picture = Picture("", figure_svg(DRAWN[result.kind](result), f"plot{name}", result.title))
        return [picture, *(_gallery(result) if isinstance(result, Comparison) else [])]
    if isinstance(result, StoredResult):
        return [Picture("", figure_svg(bars.bars(result), f"bars{name}", result.title))]
    return [Picture("", figure_png(result.figure(), result.title))]


def _gallery(result: Comparison) -> list[Picture]:
    heading = "Images on which the nets disagree"
    return [Picture(heading, figure_png(result.gallery(), heading))] if result.disagreements else []


def _heatmap(grid: Grid, heading: str) -> Picture:
    notes = [f"{note}: {', '.join(names)}" for note, names in grid.notes.items()]
    return Picture(heading, "", grid_maps(grid), grid.verdicts(), grid.label, notes)


def _mean(results: Sequence[Result], sections: Sequence[Section]) -> Picture | None:
    """The mean over seeds, of kinds that are heatmaps."""
    read = {"robustness": robustness_grid, "joint_robustness": joint_grid}.get(results[0].kind)
    if len(results) < 2 or read is None:
        return None
    try:
        return _heatmap(mean_grid([read(result) for result in results]), f"Mean over {len(results)} seeds")
    except AnalysisError as error:
        sections[0].troubles.append(f"No mean over seeds: {error}.")
        return None


def _counts(result: Result) -> list[Row]:
    """For each treatment, how many units are robust, and which share of the parameters lies in them."""
    found = []
    rows = [row for row in result.rows if row.get("unit") != FULL and row.get("treatment") != UNTOUCHED]
    for treatment in dict.fromkeys(str(row.get("treatment")) for row in rows):
        mine = [row for row in rows if str(row.get("treatment")) == treatment]
        every = sum(number(row.get("params")) or 0 for row in mine)
        held = sum(number(row.get("params")) or 0 for row in mine if row.get("verdict") == "robust")
        counts: Row = {verdict: sum(row.get("verdict") == verdict for row in mine) for verdict in VERDICTS}
        found.append({"treatment": treatment} | counts | {"share": f"{PERCENT * held / every:.1f}%" if every else "-"})
    return found
