"""Which classes are similar: the sets of Hoiem et al. for VOC, COCO's supercategories, or the user's own.

Apart from the diagnosis because these are facts about data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import AnalysisError

Sets = Mapping[str, Sequence[str | int]]

VOC_NAMES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
VOC: dict[str, list[str]] = {  # Hoiem et al. 2012, section 2; a class may be in two sets
    "vehicles": ["aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"],
    "animals": ["bird", "cat", "cow", "dog", "horse", "person", "sheep"],
    "furniture": ["chair", "diningtable", "sofa"],
    "fliers": ["aeroplane", "bird"],
}
COCO: dict[str, list[str]] = {  # supercategories, in the order of the 80 classes
    "person": ["person"],
    "vehicle": ["bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"],
    "outdoor": ["traffic light", "fire hydrant", "stop sign", "parking meter", "bench"],
    "animal": ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"],
    "accessory": ["backpack", "umbrella", "handbag", "tie", "suitcase"],
    "sports": [
        *("frisbee", "skis", "snowboard", "sports ball", "kite"),
        *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    ],
    "kitchen": ["bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"],
    "food": ["banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"],
    "furniture": ["chair", "couch", "potted plant", "bed", "dining table", "toilet"],
    "electronic": ["tv", "laptop", "mouse", "remote", "keyboard", "cell phone"],
    "appliance": ["microwave", "oven", "toaster", "sink", "refrigerator"],
    "indoor": ["book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"],
}
COCO_NAMES = [name for members in COCO.values() for name in members]
SHIPPED: dict[str, tuple[dict[str, list[str]], list[str]]] = {"voc": (VOC, VOC_NAMES), "coco": (COCO, COCO_NAMES)}


def class_names(
    names: Mapping[int, str] | Sequence[str] | None, similar: str | Sets | None, labels: NDArray[np.int64]
) -> dict[int, str]:
    """Class index to name: as given, else VOC's or COCO's own order, else the indices that occur.

    Raises:
        AnalysisError: When a label has no name.

    Example:
        >>> class_names(None, "voc", np.array([14]))[14]
        'person'
        >>> class_names(["cat", "dog"], None, np.array([1, 1]))
        {0: 'cat', 1: 'dog'}
    """
    if names is None and isinstance(similar, str) and similar in SHIPPED:
        names = SHIPPED[similar][1]
    if names is None:
        return {int(label): str(label) for label in np.unique(labels)}
    known = dict(names.items() if isinstance(names, Mapping) else enumerate(names))
    if strangers := sorted(set(np.unique(labels).tolist()) - set(known)):
        raise AnalysisError(
            f"detection_errors: label {strangers[0]} has no name; names has {len(known)} classes "
            f"({min(known, default=0)} to {max(known, default=0)}); give a name for each label"
        )
    return known


def similarity(names: Mapping[int, str], similar: str | Sets | None) -> NDArray[np.bool_]:
    """Which pairs of classes share a set (classes, classes), in the order of ``names``; no class is its own.

    Names of a shipped set that the data has not are left out; of a set of the user's own, each must be a class.

    Raises:
        AnalysisError: When the sets do not fit the classes.

    Example:
        >>> similarity({0: "bird", 1: "aeroplane", 2: "dog"}, "voc").astype(int)
        array([[0, 1, 1],
               [1, 0, 0],
               [1, 0, 0]])
    """
    pairs = np.zeros((len(names), len(names)), dtype=bool)
    for group in _groups(names, similar):
        pairs[np.ix_(group, group)] = True
    np.fill_diagonal(pairs, False)
    return pairs


def _groups(names: Mapping[int, str], similar: Any) -> list[list[int]]:
    """Positions in ``names`` of the members of each set."""
    if similar is None:
        return []
    places = {name: place for place, name in enumerate(names.values())}
    if isinstance(similar, Mapping):
        indices = {index: place for place, index in enumerate(names)}
        return [[_place(member, key, places | indices) for member in group] for key, group in similar.items()]
    if not isinstance(similar, str) or similar not in SHIPPED:
        raise AnalysisError(f"similar={similar!r} is unknown; write 'voc', 'coco', or sets such as {{'pets': [...]}}")
    groups = [[places[name] for name in group if name in places] for group in SHIPPED[similar][0].values()]
    if not any(groups):
        classes = ", ".join(list(names.values())[:4])
        raise AnalysisError(f"similar='{similar}': none of its classes is one of this data ({classes}, ...); name sets")
    return groups


def _place(member: str | int, key: str, places: Mapping[Any, int]) -> int:
    if member in places:
        return places[member]
    close = get_close_matches(str(member), [str(name) for name in places], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise AnalysisError(f"similar['{key}']: '{member}' is no class of this data{hint} (names or indices of classes)")
