"""Two nets on the same images, before and after surgery for instance: what changed, and whether the images can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import binomtest

from analysis.beside import MEASURES, TAKES, Pair, Part, accuracies
from analysis.disagreeing import Disagreement, disagreements
from analysis.model_names import model_name
from analysis.opening import versions_of
from analysis.result import Result, Row, two_names
from surgeon.errors import AnalysisError, SurgeonError
from surgeon.host import InputSize, unwrap


class Comparison(Result):
    """Two nets side by side; differences are the second's less the first's.

    Attributes:
        results: Of the single measures, of each net, for a report of all.
        disagreements: Images of which the nets choose different classes, the surest ones first.
        labels: Names of the nets.
    """

    kind = "comparison"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        self.labels = two_names(settings["labels"])
        super().__init__(f"{self.labels[0]} and {self.labels[1]}", rows, summary, settings)
        self.results: list[Result] = []
        self.disagreements: list[Disagreement] = []

    def figure(self) -> Figure:
        """Draw both nets on every measure."""
        from analysis.comparison_figure import draw

        return draw(self)

    def gallery(self) -> Figure:
        """Draw the images on which the nets disagree, with what each chooses.

        Raises:
            AnalysisError: When there is none, or the result was read from a file, which holds no images.
        """
        from analysis.comparison_figure import gallery

        return gallery(self)

    def report(self, path: str | Path) -> Path:
        """Write one HTML file: the comparison, the images on which the nets disagree, and each measure of each net."""
        from analysis.pages import write_report

        return write_report([self, *self.results], path, self.title)


def compare(
    a: Any,
    b: Any,
    data: Iterable[Any],
    *,
    labels: Sequence[str] = ("original", "operated"),
    measures: Sequence[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    shown: int = 12,
    seed: int = 0,
    limit: int | None = None,
    amp: str | None = None,
    memory: int | str = "1GiB",
    progress: bool = True,
    input_size: InputSize = None,
    command: str = "",
) -> Comparison:
    """Compare two classifiers on the same images, measure by measure, with paired 95% intervals.

    Accuracy, loss and the images on which the nets disagree are always compared. Differences of means over images
    have intervals from drawing the images anew, the same for both nets (of the loss Student's). Both nets are put back
    bit for bit.

    Args:
        a: A classifier.
        b: Another, for the same classes.
        data: Batches of (images, class indices) that can be gone through again and again, in the same order.
        labels: Names of the nets.
        measures: What else, of "translation", "consistency", "resolution", "equivariance", "robustness", "attribution"
            (needs captum) and "cost"; all by default.
        settings: Of a measure, by its name: arguments of the function that measures it, such as
            ``{"translation": {"reach": 8}}``.
        shown: Images of the gallery, at most.
        seed: Of everything drawn.
        limit: Most images.
        amp: "bfloat16" or "float16" for autocast.
        memory: Bytes that batches may keep.
        progress: Show it in a terminal.
        input_size: As for ``surgeon.locate``; by default the model's own, or that of the first images.
        command: What made the result, for its report.

    Returns:
        Rows per measure: both nets, difference and interval. A measure that one of the nets does not take is left out,
        and the summary says why.

    Raises:
        AnalysisError: When models, data or settings do not fit.

    Example:
        >>> import torch, surgeon
        >>> data = [(torch.rand(12, 3, 32, 32), torch.arange(12) % 5)]
        >>> a, b = (surgeon.create_model("test_resnet", num_classes=5) for _ in range(2))
        >>> found = compare(a, surgeon.apply(b, "spd", 32), data, measures=["consistency"], progress=False)
        >>> [row["measure"] for row in found.rows][:2]
        ['accuracy', 'loss']

    References:
        The share of images only one net gets right, and the sign test on them: McNemar, Psychometrika 1947.
    """
    names = two_names(labels, ("measure", "difference", "difference_low_95", "difference_high_95", "images"))
    asked = list(MEASURES) if measures is None else measures
    _check(data, asked, settings or {}, shown)
    common = {"seed": seed, "limit": limit, "amp": amp, "memory": memory, "progress": progress, "command": command}
    pair = Pair((a, b), names, data, common, input_size)
    first, readings = accuracies(pair)
    parts, notes = [first], list[str]()
    complete = True
    for name in asked:
        try:
            parts.append(MEASURES[name](pair, **dict((settings or {}).get(name, {}))))
        except SurgeonError as error:
            notes.append(f"{name} is left out: {error}")
        except KeyboardInterrupt:
            complete = False
        if not complete or not all(result.settings.get("complete", True) for result in parts[-1].results):
            complete = False
            notes.append(f"stopped during {name}; what follows was not measured")
            break
    rows = [row for part in parts for row in part.rows]
    found = Comparison(
        rows, _summary(names, rows, first, notes), _about(pair, parts, notes, asked) | {"complete": complete}
    )
    found.results = list(_labelled(names, parts))
    found.disagreements = disagreements(data, readings, shown)
    return found


def _check(data: Any, measures: Sequence[str], settings: Mapping[str, Any], shown: int) -> None:
    for name, own in settings.items():
        if name in TAKES and (unknown := [key for key in own if key not in TAKES[name]]):
            raise AnalysisError(f"settings: {name} takes no '{unknown[0]}'; it takes {', '.join(sorted(TAKES[name]))}")
    if isinstance(data, Iterator) or not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        raise AnalysisError(
            f"data is a {type(data).__name__}, and is gone through for each net and measure; give a list or DataLoader"
        )
    asked = [measures] if isinstance(measures, str) else list(measures)
    for what, found in (("measures", asked), ("settings", list(settings))):
        if unknown := [name for name in found if name not in MEASURES]:
            raise AnalysisError(f"{what}: '{unknown[0]}' is none; there are {', '.join(MEASURES)}")
    if isinstance(measures, str):
        raise AnalysisError(f"measures is the text {measures!r}; give a list, as [{measures!r}]")
    if isinstance(shown, bool) or not isinstance(shown, int) or shown < 0:
        raise AnalysisError(f"shown is {shown!r}; give a number of images")


def _about(pair: Pair, parts: Sequence[Part], notes: Sequence[str], measures: Sequence[str]) -> dict[str, Any]:
    own = {key: value for part in parts for key, value in part.own.items()}
    return {
        **{"model": " and ".join(model_name(unwrap(model)) for model in pair.models), "labels": list(pair.labels)},
        **{"images": parts[0].rows[0]["images"], "measures": list(measures), **own},
        **{key: pair.common[key] for key in ("seed", "limit", "amp")},
        **{"notes": list(notes), "command": pair.common["command"], "versions": versions_of()},
    }


def _labelled(labels: Sequence[str], parts: Sequence[Part]) -> Iterator[Result]:
    for part in parts:
        if len(part.results) == len(labels):  # one of each net
            for label, result in zip(labels, part.results, strict=True):
                result.title = f"{label}: {result.title}"
        yield from part.results


def _summary(labels: tuple[str, str], rows: Sequence[Row], first: Part, notes: Sequence[str]) -> str:
    accuracy, only = rows[0], next(row for row in rows if row["measure"].startswith("images only"))
    gains = [int(only[label]) for label in labels]
    sure = binomtest(gains[1], sum(gains)).pvalue if sum(gains) else 1.0
    words = [
        f"{accuracy['images']} images: accuracy {accuracy[labels[0]]:.2%} of {labels[0]}, {accuracy[labels[1]]:.2%} of "
        f"{labels[1]} ({100 * accuracy['difference']:+.2f} points, "
        f"{100 * accuracy['difference_low_95']:+.2f} to {100 * accuracy['difference_high_95']:+.2f})",
        f"they disagree on {first.own['disagree_images']}; {gains[0]} only {labels[0]} gets right, {gains[1]} only "
        f"{labels[1]} (sign test p = {sure:.2g})",
    ]
    told = [row for row in rows[1:] if row["difference_low_95"] is not None and row["measure"] != "loss"]
    clear = [row for row in told if row["difference_low_95"] > 0 or row["difference_high_95"] < 0]
    if clear:
        words.append(
            "told apart: " + ", ".join(f"{row['measure']} {100 * row['difference']:+.1f} points" for row in clear)
        )
    return "; ".join(words) + "." + "".join(f" Note: {note}." for note in notes)
