"""Two nets on the same images, before and after surgery for instance: what changed, and whether the images can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.beside import Kit, Pair, Part
from analysis.classifiers_beside import CLASSIFIERS
from analysis.detectors_beside import DETECTORS, detector_options
from analysis.disagreeing import Disagreement, Disputed
from analysis.model_names import model_name
from analysis.opening import detects, versions_of
from analysis.result import Result, Row, two_names
from surgeon.errors import AnalysisError, SurgeonError
from surgeon.host import InputSize, unwrap


class Comparison(Result):
    """Two nets side by side; differences are the second's less the first's.

    Attributes:
        results: Of the single measures, of each net, for a report of all.
        disagreements: Images of which the nets choose different classes, the surest ones first; of detectors those with
            most detections that only one of them makes.
        labels: Names of the nets.
    """

    kind = "comparison"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        self.labels = two_names(settings["labels"])
        super().__init__(f"{self.labels[0]} and {self.labels[1]}", rows, summary, settings)
        self.results: list[Result] = []
        self.disagreements: list[Disagreement] | list[Disputed] = []

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
    data: Any,
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
    detector: Mapping[str, Any] | None = None,
    command: str = "",
) -> Comparison:
    """Compare two classifiers, or two detectors, on the same images, measure by measure, with paired 95% intervals.

    Accuracy, loss and the images on which the nets disagree are always compared; of detectors average precision and the
    detections (surer than 0.25) that only one of them makes: paired one to one, by an overlap of 0.5. Differences of
    means over images have intervals from drawing the images anew, the same for both nets (of the loss Student's). Both
    nets are put back bit for bit.

    Args:
        a: A classifier, or an ultralytics detector.
        b: Another, for the same classes.
        data: Batches of (images, class indices) that can be gone through again and again, in the same order; of
            detectors a data yaml, or batches of (images from 0 to 1, [{"boxes", "labels"}]).
        labels: Names of the nets.
        measures: What else, of "translation", "consistency", "resolution", "equivariance", "robustness", "attribution"
            (needs captum) and "cost"; of detectors "detection_shift" in place of the first two. All by default.
        settings: Of a measure, by its name: arguments of the function that measures it, such as
            ``{"translation": {"reach": 8}}``.
        shown: Images of the gallery, at most.
        seed: Of everything drawn.
        limit: Most images.
        amp: "bfloat16" or "float16" for autocast.
        memory: Bytes that batches may keep.
        progress: Show it in a terminal.
        input_size: As for ``surgeon.locate``; by default the model's own, or that of the first images.
        detector: Settings of detectors: imgsz (both see that size; by default the first one's), batch, split, conf,
            iou, max_det, resamples.
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
    kit = kit_of(a, b)
    asked = list(kit.measures) if measures is None else measures
    _check(data, asked, settings or {}, shown, kit)
    common = {"seed": seed, "limit": limit, "amp": amp, "memory": memory, "progress": progress, "command": command}
    options = detector_options((a, b), detector) if kit is DETECTORS else None
    pair = Pair((a, b), names, data, common, input_size, options)
    first, disagreements = kit.first(pair)
    parts, notes = [first], list(first.notes)
    complete = True
    for name in asked:
        try:
            parts.append(kit.measures[name](pair, **dict((settings or {}).get(name, {}))))
            notes += parts[-1].notes
        except SurgeonError as error:
            notes.append(f"{name} is left out: {error}")
        except (RuntimeError, TypeError, ValueError) as error:  # of the model's own code; the other measures stay
            words = " ".join(str(error).split())[:200]
            notes.append(f"{name} is left out: it failed by {type(error).__name__}: {words}")
        except KeyboardInterrupt:
            complete = False
        if not complete or not all(result.settings.get("complete", True) for result in parts[-1].results):
            complete = False
            notes.append(f"stopped during {name}; what follows was not measured")
            break
    rows = [row for part in parts for row in part.rows]
    found = Comparison(rows, _summary(rows, first, notes), _about(pair, parts, notes, asked) | {"complete": complete})
    found.results = list(_labelled(names, parts))
    found.disagreements = disagreements(shown)
    return found


def kit_of(a: Any, b: Any) -> Kit:
    """What nets of this kind are compared by.

    Raises:
        AnalysisError: When they are of two kinds.

    Example:
        >>> from torch import nn
        >>> kit_of(nn.Linear(2, 2), nn.Linear(2, 2)) is CLASSIFIERS
        True
    """
    kinds = [detects(model) for model in (a, b)]
    if kinds[0] != kinds[1]:
        names = " and ".join(model_name(unwrap(model)) for model in (a, b))
        raise AnalysisError(f"{names} are a classifier and a detector, which have nothing in common to compare")
    return DETECTORS if kinds[0] else CLASSIFIERS


def _check(data: Any, measures: Sequence[str], settings: Mapping[str, Any], shown: int, kit: Kit) -> None:
    for name, own in settings.items():
        takes = kit.takes.get(name)
        if takes is not None and (unknown := [key for key in own if key not in takes]):
            raise AnalysisError(f"settings: {name} takes no '{unknown[0]}'; it takes {', '.join(sorted(takes))}")
    again = isinstance(data, (str, Path, Iterable)) or hasattr(data, "__getitem__")
    if isinstance(data, Iterator) or not again:
        raise AnalysisError(
            f"data is a {type(data).__name__}, and is gone through for each net and measure; give a list or DataLoader"
        )
    asked = [measures] if isinstance(measures, str) else list(measures)
    for what, found in (("measures", asked), ("settings", list(settings))):
        if unknown := [name for name in found if name not in kit.measures]:
            of = " of detectors" if kit is DETECTORS else ""
            raise AnalysisError(f"{what}: '{unknown[0]}' is none{of}; there are {', '.join(kit.measures)}")
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
        **({} if pair.detector is None else {"detector": dict(pair.detector)}),
        **{"notes": list(notes), "command": pair.common["command"], "versions": versions_of()},
    }


def _labelled(labels: Sequence[str], parts: Sequence[Part]) -> Iterator[Result]:
    for part in parts:
        if len(part.results) == len(labels):  # one of each net
            for label, result in zip(labels, part.results, strict=True):
                result.title = f"{label}: {result.title}"
        yield from part.results


def _summary(rows: Sequence[Row], first: Part, notes: Sequence[str]) -> str:
    words = list(first.said)
    told = [row for row in rows[1:] if row["difference_low_95"] is not None and row["measure"] != "loss"]
    clear = [row for row in told if row["difference_low_95"] > 0 or row["difference_high_95"] < 0]
    if clear:
        words.append(
            "told apart: " + ", ".join(f"{row['measure']} {100 * row['difference']:+.1f} points" for row in clear)
        )
    return "; ".join(words) + "." + "".join(f" Note: {note}." for note in notes)
