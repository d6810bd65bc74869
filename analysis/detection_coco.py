"""Average precision as COCO defines it, and how far it would move with other images: faster-coco-eval, resampled.

Apart from the results so that the one place that leans on faster-coco-eval, which is optional, is small.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detection_running import INSTALL, Boxes, Detections
from surgeon.errors import AnalysisError

METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR")
AREAS = {"AP_S": (0.0, 32.0**2), "AP_M": (32.0**2, 96.0**2), "AP_L": (96.0**2, 1e10)}  # square pixels, both ends in
_KEYS = ("AP_all", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large", "AR_third")  # the last: 100 detections


class CocoScores:
    """COCO's averages of detections, of these images and of images drawn anew from them.

    Args:
        found: Of :func:`analysis.detect`.

    Raises:
        AnalysisError: When faster-coco-eval is missing, or there is no image.
    """

    def __init__(self, found: Detections) -> None:
        package = coco_eval()
        if not found.images:
            raise AnalysisError("there is no image to take the average precision of; check the data yaml's split")
        truth = package.COCO(_truth(found))
        answers = truth.loadRes(_answers(found))
        self._evaluator = package.COCOeval_faster(
            truth, answers, iouType="bbox", separate_eval=True, print_function=lambda *words: None
        )
        self._evaluator.evaluate()
        per_image = np.empty(len(self._evaluator._evalImgs_cpp), dtype=object)
        per_image[:] = self._evaluator._evalImgs_cpp
        self._per_image = per_image.reshape(-1, len(found.images))  # (classes * areas, images)
        self.images = len(found.images)

    def of(self, images: NDArray[np.int64]) -> NDArray[np.float64]:
        """The averages, in the order of ``METRICS``, of images drawn: as many indices as images, some repeated.

        Not a number where no object has that size. Exactly what the same images, copied, would give.
        """
        self._evaluator._evalImgs_cpp = self._per_image[:, images].ravel().tolist()
        self._evaluator.accumulate()
        self._evaluator.summarize()
        values = np.array([self._evaluator.stats_as_dict[key] for key in _KEYS])
        return np.where(values < 0, np.nan, values)

    def all(self) -> NDArray[np.float64]:
        """The averages of the images as they are."""
        return self.of(np.arange(self.images))

    def resampled(self, count: int, seed: int) -> NDArray[np.float64]:
        """The averages of ``count`` draws with replacement (count, metrics); the same draws for the same seed."""
        generator = np.random.default_rng(seed)
        draws = [self.of(generator.integers(self.images, size=self.images)) for _ in range(count)]
        return np.array(draws).reshape(count, len(METRICS))

    def resampled_ap(self, count: int, seed: int) -> NDArray[np.float64]:
        """The AP alone of the draws that :meth:`resampled` makes (count,), in a fifth of its time."""
        evaluator, generator = self._evaluator, np.random.default_rng(seed)
        whole = evaluator._paramsEval
        every = self._per_image[:: len(whole.areaRng)]  # (classes, images): of the areas the first, which is all
        try:
            evaluator._paramsEval = copy.copy(whole)
            evaluator._paramsEval.areaRng, evaluator._paramsEval.areaRngLbl = whole.areaRng[:1], whole.areaRngLbl[:1]
            found = []
            for _ in range(count):
                images = generator.integers(self.images, size=self.images)
                evaluator._evalImgs_cpp = every[:, images].ravel().tolist()
                evaluator.accumulate()
                precision = np.asarray(evaluator.eval["precision"])[..., 0, -1]  # (overlaps, recalls, classes)
                there = precision[precision > -1]
                found.append(there.mean() if there.size else np.nan)
        finally:
            evaluator._paramsEval = whole
        return np.array(found, np.float64)


def coco_eval() -> Any:
    """Return the package faster_coco_eval.

    Raises:
        AnalysisError: When it is missing.
    """
    try:
        import faster_coco_eval
    except ImportError as error:
        raise AnalysisError(f"average precision needs faster-coco-eval ({error}); {INSTALL}") from error
    return faster_coco_eval


def objects_of_size(targets: list[Boxes]) -> dict[str, int]:
    """How many objects each metric is over; an area on a border counts for both sizes, as in COCO."""
    area = np.concatenate([np.prod(one["boxes"][:, 2:] - one["boxes"][:, :2], axis=1) for one in targets])
    counts = dict.fromkeys(METRICS, len(area))
    return counts | {key: int(((area >= low) & (area <= high)).sum()) for key, (low, high) in AREAS.items()}


def interval(draws: NDArray[np.float64]) -> tuple[float, float] | None:
    """The middle 95% of draws that are numbers; none where fewer than half of them are."""
    numbers = draws[~np.isnan(draws)]
    if len(numbers) == 0 or 2 * len(numbers) < len(draws):
        return None
    low, high = np.quantile(numbers, [0.025, 0.975])
    return float(low), float(high)


def _truth(found: Detections) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, one in enumerate(found.targets):
        for (x1, y1, x2, y2), label in zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
            annotations.append(annotation | {"bbox": box, "area": box[2] * box[3]})
    categories = [{"id": index, "name": name} for index, name in found.names.items()]
    return {"images": [{"id": i} for i in range(len(found.images))], "annotations": annotations} | {
        "categories": categories
    }


def _answers(found: Detections) -> list[dict[str, Any]]:
    """Rounded as ultralytics writes predictions.json, so that the figures are those of ``val(save_json=True)``."""
    return [
        {
            "image_id": image,
            "category_id": label,
            "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
        for image, one in enumerate(found.predictions)
        for (x1, y1, x2, y2), label, score in zip(
            one["boxes"].tolist(), one["labels"].tolist(), one["scores"].tolist(), strict=True
        )
    ]
