"""A result read back from its JSON file: the same rows, drawn by its kind.

Apart from the results themselves because it knows how each kind is drawn, and needs none of the nets or data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis import (
    attribution_figure,
    bars,
    comparison_figure,
    consistency_figure,
    curves,
    detection_shift_figure,
    features_shifted_figure,
    heatmap,
    perceptual_figure,
    periodicity_figure,
    resolution_figure,
    saliency_figure,
    sampling_figure,
    spatial_figure,
    translation_figure,
)
from analysis.result import Result, Row
from surgeon.errors import AnalysisError

DRAWN = {
    "perceptual": perceptual_figure.draw,
    "perceptual_fit": perceptual_figure.draw_fit,
    "robustness": heatmap.heatmap,
    "joint_robustness": heatmap.joint,
    "joint_search": curves.curve,
    "search_joint": curves.curve,
    "detection_shift": detection_shift_figure.draw,
    "resolution": resolution_figure.draw,
    "attribution": attribution_figure.draw,
    "attribution_equivariance": saliency_figure.draw,
    "comparison": comparison_figure.draw,
    "consistency": consistency_figure.draw,
    "translation": translation_figure.draw,
    "spatial_dependence": spatial_figure.draw,
    "sampling_map": sampling_figure.draw,
    "equivariance": features_shifted_figure.draw,
    "aliasing": periodicity_figure.draw,
}


class StoredResult(Result):
    """Rows, title, summary, settings and kind as a file holds them.

    Args:
        kind: Of the analysis; those in ``DRAWN`` are drawn as themselves, any other as bars of the column that matters
            most.
        title: What was analysed.
        rows: As they were written.
        summary: One sentence.
        settings: What made it.
        source: The file it was read from, as a page names it.

    Example:
        >>> found = StoredResult("shift_sparsity", "Shifts", [{"layer": "a", "sparsity": 0.5}], "half stay")
        >>> print(found)
        Shifts
        layer  sparsity
        a           0.5
        half stay
    """

    def __init__(
        self,
        kind: str,
        title: str,
        rows: Sequence[Row],
        summary: str = "",
        settings: Mapping[str, Any] | None = None,
        source: str = "",
    ) -> None:
        super().__init__(title, rows, summary, settings)
        self.kind, self.source = kind, source

    def figure(self) -> Figure:
        """Draw the rows as the analysis does that made them."""
        return DRAWN.get(self.kind, bars.bars)(self)


def read_result(path: str | Path, source: str = "") -> StoredResult:
    """Read a result that was written by its ``to_json``.

    Args:
        path: Of the JSON file.
        source: What a page calls it; the path where it is left out.

    Raises:
        AnalysisError: When the file cannot be read, is no JSON, or holds no result.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "result.json"
        ...     text = StoredResult("robustness", "three layers", [], "nothing yet").to_json(file)
        ...     read_result(file).title
        'three layers'
    """
    return as_result(read_json(path), str(path), source)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        AnalysisError: When it cannot be read or is no JSON.

    Example:
        >>> read_json("no/such.json")
        Traceback (most recent call last):
        ...
        surgeon.errors.AnalysisError: no/such.json cannot be read: No such file or directory; ...
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise AnalysisError(f"{path} cannot be read: {error.strerror}; name a result's JSON file") from error
    except (ValueError, RecursionError) as error:
        raise AnalysisError(f"{path} is no JSON: {error}; it may be cut short, write it again") from error


def as_result(content: Any, path: str, source: str = "") -> StoredResult:
    """Make a result of what a JSON file holds.

    Raises:
        AnalysisError: When it lacks a part of a result, or a part is of another type.

    Example:
        >>> as_result({"title": "t", "summary": "s", "rows": [{"a": 1}]}, "t.json").kind
        'result'
    """
    if not looks_like_result(content):
        raise AnalysisError(f"{path} holds no result: it needs title, summary and rows; name a file of to_json")
    types = {"kind": str, "title": str, "summary": str, "settings": dict, "rows": list}
    for key, wanted in types.items():
        if not isinstance(content.get(key, wanted()), wanted):
            raise AnalysisError(
                f"{path}: {key} is no {wanted.__name__} but {type(content[key]).__name__}; write it again"
            )
    if wrong := [place for place, row in enumerate(content["rows"]) if not isinstance(row, dict)]:
        raise AnalysisError(f"{path}: row {wrong[0]} is no dict of columns; write it again")
    about = (content["title"], content["rows"], content["summary"], content.get("settings"))
    return StoredResult(content.get("kind") or "result", *about, source=source or path)


def looks_like_result(content: Any) -> bool:
    """Whether JSON content has the parts of a result.

    Example:
        >>> looks_like_result({"epoch": 3}), looks_like_result({"title": "", "summary": "", "rows": []})
        (False, True)
    """
    return isinstance(content, dict) and {"title", "summary", "rows"} <= content.keys()
