"""The one number per image that an attribution explains: a class's logit, or how sure a detector is.

Apart from the attributions, which divide the number up and need not know where it comes from.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from analysis.tasks import Task
from analysis.unit_taps import Tap
from surgeon.errors import AnalysisError

Target = Literal["label", "predicted", "confidence"]
BOX = 4  # coordinates before the scores


class Objective(nn.Module):
    """A model that answers one number per image; captum's forward function.

    Of a classifier it is the logit of a class. Of a detector it is the sum of the ``top`` largest scores in the image,
    the score of a place being that of its likeliest class: how much the detector finds, whatever and wherever.

    Args:
        module: A network.
        task: Its job, which knows how it is run.
        target: "label", "predicted" or, of detectors, "confidence".
        top: Places of a detector that count.
        amp: Type of autocast; None for none.

    Attributes:
        image: A tap at the input.
        last: What it said in the last pass.

    Example:
        >>> from analysis.tasks import Classification
        >>> net = Objective(nn.Flatten(), Classification(), "label")
        >>> net(torch.arange(6.0).view(2, 3, 1, 1), torch.tensor([1, 2])).tolist()
        [1.0, 5.0]
    """

    def __init__(
        self, module: nn.Module, task: Task, target: Target, top: int = 100, amp: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.module, self.image = module, Tap()
        self.task, self.target, self.top, self.amp = task, target, top, amp
        self.last: Tensor | None = None

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """The number of each image, (N,)."""
        seen = self.image(images).clone()  # a copy, which the model may write into
        on = nullcontext() if self.amp is None else torch.autocast(images.device.type, self.amp)
        with on:
            if self.target == "confidence":
                found = self._confidence(seen)
            else:
                found = self.task.forward(self.module, (seen, targets)).gather(1, targets[:, None])[:, 0]
        self.last = found.detach()
        return found

    def opened(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Images and the classes they are explained for (zeros for a detector) of a batch that the task prepared.

        Raises:
            AnalysisError: When there are no images of real numbers in it.
        """
        images = batch["img"] if isinstance(batch, dict) else batch[0]
        if images.ndim != 4 or not images.is_floating_point():
            raise AnalysisError(
                f"data: images are {images.dtype} {tuple(images.shape)}; give floating-point ones (N, C, H, W)"
            )
        images = images.detach().clone() if images.is_inference() else images.detach()  # autograd keeps no such
        if self.target == "confidence":
            return images, torch.zeros(len(images), dtype=torch.int64, device=images.device)
        targets = batch[1].clone() if batch[1].is_inference() else batch[1]
        if self.target == "label":
            return images, targets
        on = nullcontext() if self.amp is None else torch.autocast(images.device.type, self.amp)
        with torch.no_grad(), on:
            return images, self.task.forward(self.module, (images.clone(), targets)).argmax(1)

    def _confidence(self, images: Tensor) -> Tensor:
        found = self.task.forward(self.module, {"img": images})[0]
        head: Any = self.module.model[-1]  # type: ignore[index,union-attr]
        listed = bool(getattr(head, "end2end", False)) or "RTDETR" in type(head).__name__  # (N, found, 6)
        scores: Tensor = found[..., BOX] if listed else found[:, BOX : BOX + head.nc].amax(1)
        return scores.topk(min(self.top, scores.shape[1]), 1).values.sum(1)


__all__ = ["Objective", "Target"]
