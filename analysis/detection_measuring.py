"""What is measured of every image of a detector: its validation loss, and what it finds.

Ultralytics' own code suppresses double boxes, scales them back and computes the loss, as ``model.val()`` and training
do. Apart from making a detector ready, and from what is computed of the detections.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from analysis.detection_batches import Batch, as_batch, part_of
from analysis.detection_suppressing import suppressing_until
from analysis.tasks import Classification, Measured
from surgeon.errors import AnalysisError


class LogitsLast(Classification):
    """The task of ultralytics' classifiers, which answer probabilities and then logits in evaluation mode."""

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The logits."""

        def logits(images: Tensor) -> Any:
            answer = model(images)
            return answer[-1] if isinstance(answer, (tuple, list)) else answer

        return super().forward(logits, batch)  # type: ignore[arg-type]


class Detection:
    """Loss and detections of a detector.

    The loss is that of ultralytics' criterion (``model.loss``), computed image by image and summed over its parts, so
    that it does not depend on the batches: ultralytics itself divides by what it assigned in a whole batch. Of heads
    with two branches (yolov10, yolo26) it is both, weighted as training begins; of RT-DETR it is without the denoising
    queries, which are of training.

    Args:
        module: The network.
        validator: Ultralytics', with its settings.

    Attributes:
        has_loss: Whether the criterion can be computed; else the loss is not a number.
    """

    primary = "ap"

    def __init__(self, module: Any, validator: Any) -> None:
        self.module, self.validator = module, validator
        self.names, self.grid = module.names, int(module.stride.max())
        self.has_loss = True

    def prepare(self, batch: Any, device: torch.device) -> Batch:
        """A batch where the model is, images from 0 to 1."""
        batch = dict(batch) if isinstance(batch, dict) else as_batch(batch, self.names, self.grid)
        if not batch["img"].is_floating_point():
            batch = self.validator.preprocess(batch)
        kind = next(self.module.parameters()).dtype
        for key in ("img", "batch_idx", "cls", "bboxes"):
            batch[key] = batch[key].to(device, non_blocking=True)
        return {**batch, "img": batch["img"].to(kind)}

    def count(self, batch: Batch) -> int:
        """Images in a batch."""
        return len(batch["img"])

    def part(self, batch: Batch, start: int, stop: int) -> Batch:
        """Some images of a batch."""
        return part_of(batch, start, stop)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """What the network answers in evaluation mode: detections, and what its loss is computed of.

        Raises:
            AnalysisError: When it answers anything else.
        """
        answer = model(batch["img"])
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Tensor)):
            raise AnalysisError(
                f"it answers a {type(answer).__name__} in evaluation mode, and no (detections, outputs) as "
                "ultralytics' detectors do"
            )
        return tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, answer)

    def reference(self, answer: Any) -> None:
        """Nothing: detections are compared with the objects alone."""

    def measure(self, answer: Any, batch: Batch, reference: None) -> Measured:
        """Of each image its loss, and how many rows of ``boxes`` and ``truth`` are its own.

        ``boxes`` has corners in pixels of the original image, score and class; ``truth`` corners and class; ``place``
        tells where the image comes among all, sorted by path; 0 where that is not known.
        """
        ones = [(answer_of(answer, i), part_of(batch, i, i + 1)) for i in range(self.count(batch))]
        found = [self.found(*one) for one in ones]
        losses = [self.loss(*one) if self.has_loss else math.nan for one in ones]
        return {
            "loss": np.array(losses, np.float64),
            "place": np.array(batch["place"], np.int32),
            "found": np.array([len(rows) for rows in found], np.int32),
            "objects": np.array([len(rows) for rows in batch["truth"]], np.int32),
            "boxes": np.concatenate(found).astype(np.float32),
            "truth": np.concatenate(batch["truth"]).astype(np.float64),
        }

    def found(self, answer: Any, batch: Batch) -> NDArray[Any]:
        """Detections in one image, in its own pixels: corners, score, class; those that are no numbers are left out.

        One image at a time, so that ultralytics' time limit for suppressing boxes does not cut batches short.
        """
        self.validator.args.imgsz = list(batch["img"].shape[2:])  # RT-DETR's boxes are shares of it
        with suppressing_until(self.validator.args.max_det):
            found = self.validator.postprocess(answer)[0]
        scaled = self.validator.scale_preds(found, self.validator._prepare_batch(0, batch))
        rows = torch.cat([scaled["bboxes"], scaled["conf"][:, None], scaled["cls"][:, None].float()], 1)
        known = rows.isfinite().all(1) & (rows[:, 5] < self.validator.data.get("nc", len(self.names)))
        return rows[known].cpu().numpy()  # type: ignore[no-any-return]

    def loss(self, answer: Any, batch: Batch) -> float:
        """The loss of one image, the sum of its parts."""
        return float(self.module.loss(batch, answer)[0].sum())


def answer_of(answer: Any, image: int) -> Any:
    """What a network answered for one image of a batch."""
    one = slice(image, image + 1)
    detections, outputs = answer
    if not isinstance(outputs, tuple):
        return detections[one], tree_map_only(Tensor, lambda tensor: tensor[one], outputs)
    decoded, encoded, rest = (
        outputs[:2],
        outputs[2:4],
        outputs[4:],
    )  # RT-DETR's: in the first, layers come before images
    return detections[one], (*(tensor[:, one] for tensor in decoded), *(tensor[one] for tensor in encoded), *rest)
