"""Settings of detectors, read and checked.

Apart from the task so that what may be set reads at a glance.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from surgeon.errors import AnalysisError

SPLITS = ("train", "val", "test")
LOWEST = {"imgsz": 1, "batch": 1, "max_det": 1, "resamples": 0}


@dataclass(frozen=True)
class Options:
    """Settings of detectors.

    Attributes:
        imgsz: Pixels of the longer side the net sees; None: what it was trained with.
        batch: Images per batch.
        split: train, val or test.
        conf: Lowest score of a detection.
        iou: Overlap above which the less sure of two boxes is suppressed.
        max_det: Most detections per image.
        resamples: Draws of the images for the intervals; 0 for none.
    """

    imgsz: int | None = None
    batch: int = 16
    split: str = "val"
    conf: float = 0.001
    iou: float = 0.7
    max_det: int = 300
    resamples: int = 50

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> Options:
        """What a user gave.

        Raises:
            AnalysisError: For a name or value that is none.

        Example:
            >>> Options.read({"imgsz": 320}).batch
            16
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in given or {} if name not in known]:
            near = difflib.get_close_matches(str(unknown[0]), known, 1)
            meant = f"; did you mean '{near[0]}'?" if near else ""
            raise AnalysisError(f"detector: unknown key '{unknown[0]}'{meant} (allowed: {', '.join(known)})")
        options = cls(**(given or {}))
        for name, least in LOWEST.items():
            value = getattr(options, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not whole and (name, value) != ("imgsz", None):
                raise AnalysisError(f"detector: {name} is {value!r}; give a whole number, at least {least}")
        for name in ("conf", "iou"):
            if not (isinstance(value := getattr(options, name), (int, float)) and 0 <= value <= 1):
                raise AnalysisError(f"detector: {name} is {value!r}; give a number from 0 to 1")
        if options.split not in SPLITS:
            raise AnalysisError(f"detector: split is {options.split!r}; it is one of {', '.join(SPLITS)}")
        return options
