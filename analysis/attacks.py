"""Images that an attack made: FGSM and PGD of captum, in pixels, on a batch that was normalised.

Apart from the counting in `attacking`: here is one batch, the model's answer to it, and captum, which is optional and
imported late. Three habits of captum's are changed, and said in `attack`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.errors import AnalysisError

Loss = Callable[[Tensor, Tensor], Tensor]
Norm = Literal["Linf", "L2"]
NAMES = ("fgsm", "pgd")


@dataclass(frozen=True)
class Strength:
    """How hard an attack tries.

    Attributes:
        epsilon: Largest change, in pixels: of each pixel (Linf), or the length of the change of an image (L2).
        steps: Of PGD.
        step_size: Of PGD, in pixels.
        random_start: Whether PGD starts at a random place within epsilon.
        eot: Forward passes whose gradients are averaged in each step.
        norm: Linf or L2.
        bounds: Darkest and brightest pixel.
    """

    epsilon: float
    steps: int = 10
    step_size: float = 0.0
    random_start: bool = True
    eot: int = 1
    norm: Norm = "Linf"
    bounds: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Batch:
    """Images as the model takes them and as pixels, (N, C, H, W) both; their classes (N,); the std (C, 1, 1)."""

    images: Tensor
    pixels: Tensor
    targets: Tensor
    std: Tensor

    def normalised(self, pixels: Tensor) -> Tensor:
        """Changed pixels as the model takes them; the very same images where nothing changed.

        Example:
            >>> image, std = torch.rand(1, 3, 2, 2), torch.full((3, 1, 1), 0.3)
            >>> batch = Batch(image, image * std + 0.5, torch.tensor([0]), std)
            >>> torch.equal(batch.normalised(batch.pixels), image)
            True
        """
        return self.images + ((pixels - self.pixels) / self.std).to(self.images.dtype)


def captum_robust() -> Any:
    """The package ``captum.robust``.

    Raises:
        AnalysisError: When captum is not installed.

    Example:
        >>> captum_robust().__name__
        'captum.robust'
    """
    try:
        return importlib.import_module("captum.robust")
    except ImportError as error:
        raise AnalysisError(
            f'adversarial needs the package captum ({error}); run: pip install "cnn-surgeon[attack]"'
        ) from error


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """What a classifier answers, (N, classes).

    Raises:
        AnalysisError: When that is anything else.

    Example:
        >>> logits_of(nn.Flatten(), torch.zeros(2, 3, 1, 1)).shape
        torch.Size([2, 3])
    """
    answer = model(images)
    if isinstance(answer, Tensor) and answer.ndim == 2 and len(answer) == len(images):
        return answer
    what = f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
    raise AnalysisError(
        f"adversarial attacks classifiers: {type(model).__name__} answers {what} to {len(images)} images, no logits "
        "(N, classes); wrap it in a module that answers logits (detectors are not attacked)"
    )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each image, whose gradient a confident network does not round away.

    Torch's own is the same number, but its gradient, probability minus one, is exactly zero at the right class as soon
    as that is 16 logits ahead (in single precision): the attack then only raises the wrong classes, and looks weak.
    Here it is right up to 80 logits.

    Example:
        >>> logits, targets = torch.tensor([[20.0, 0.0]], requires_grad=True), torch.tensor([0])
        >>> torch.autograd.grad(nn.functional.cross_entropy(logits, targets), logits)[0][0, 0].item()
        0.0
        >>> torch.autograd.grad(cross_entropy(logits, targets), logits)[0][0, 0].item()
        -2.06...e-09
    """
    own = functional.one_hot(targets, logits.shape[1]).bool()
    others = logits.masked_fill(own, -torch.inf).logsumexp(1)
    return functional.softplus(others - logits.gather(1, targets[:, None])[:, 0])


def attack(model: nn.Module, batch: Batch, name: str, strength: Strength, loss: Loss) -> Tensor:
    """Change the pixels of a batch so that the loss grows; the change stays within epsilon and bounds exactly.

    Captum leaves a pixel alone whose gradient is below 1e-6, which for a confident network are most of them, so that
    the attack looks weak: here none is left alone. Its L2 steps follow the sign, and are as long as epsilon allows or
    longer; here they follow the gradient, and have the length asked for. And its L-infinity ball is that of
    floating-point sums, which may be one rounding too large; here the rounding goes inwards.

    Args:
        model: In evaluation mode.
        batch: What to change.
        name: "fgsm" (Goodfellow et al. 2015: one step of epsilon along the sign) or "pgd" (Madry et al. 2018).
        strength: How far and how often.
        loss: Of (logits, targets), per image or as one number.

    Returns:
        Pixels, (N, C, H, W).

    Example:
        >>> images = torch.full((1, 2, 1, 1), 0.5)
        >>> batch = Batch(images, images, torch.tensor([0]), torch.ones(2, 1, 1))
        >>> attack(nn.Flatten(), batch, "fgsm", Strength(0.25), cross_entropy).flatten().tolist()
        [0.25, 0.75]

    References:
        Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015, arXiv:1412.6572.
        Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018, arXiv:1706.06083.
        Athalye et al., Synthesizing Robust Adversarial Examples, ICML 2018, arXiv:1707.07397 (averaged gradients).
    """

    def losses(pixels: Tensor) -> Tensor:
        return _per_image(loss(logits_of(model, batch.normalised(pixels)), batch.targets), len(pixels))

    def expected(pixels: Tensor) -> Tensor:
        answer: Tensor = _Expected.apply(pixels, strength.eot, losses)  # type: ignore[no-untyped-call]
        return answer

    kinds = captum_robust()
    one, many = (kinds.FGSM, kinds.PGD) if strength.norm == "Linf" else _of_length(kinds)
    step = one(expected, _as_it_is)
    step.zero_thresh = 0.0
    step.bound = _room(batch.pixels, strength)
    with warnings.catch_warnings():  # it sets requires_grad itself, and says so at each step
        warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients")
        if name == "fgsm":
            found: Tensor = step.perturb(batch.pixels.clone(), strength.epsilon, batch.targets)
            return found.detach()
        search = many(expected, _as_it_is)
        search.fgsm, search.bound = step, step.bound
        settings = {"random_start": strength.random_start, "norm": strength.norm}
        radius, size, steps = strength.epsilon, strength.step_size, strength.steps
        found = search.perturb(batch.pixels.clone(), radius, size, steps, batch.targets, **settings)
        return found.detach()


def _room(pixels: Tensor, strength: Strength) -> Callable[[Tensor], Tensor]:
    """Keeps an image within its bounds and, for Linf, within epsilon of ``pixels``."""
    low, high = (torch.full_like(pixels, bound) for bound in strength.bounds)
    if strength.norm == "Linf":
        far = pixels.new_tensor(strength.epsilon)
        far = torch.nextafter(far, torch.zeros_like(far)) if float(far) > strength.epsilon else far
        low, high = torch.maximum(low, _added(pixels, -far)), torch.minimum(high, _added(pixels, far))
    return partial(torch.clamp, min=low, max=high)


def _added(pixels: Tensor, change: Tensor) -> Tensor:
    """The sum, not a rounding further away than ``change``: the error of a floating-point sum is itself exact."""
    total = pixels + change
    part = total - pixels
    error = (pixels - (total - part)) + (change - part)  # Knuth's two-sum
    return torch.where(error * change < 0, torch.nextafter(total, pixels), total)


def _as_it_is(losses: Tensor, target: Tensor) -> Tensor:
    return losses


def _per_image(losses: Tensor, images: int) -> Tensor:
    """A loss per image; a mean or sum over the batch counts for each, which does not change the direction."""
    if isinstance(losses, Tensor) and losses.shape in ((), (images,)):
        return losses.expand(images)
    shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    raise AnalysisError(f"adversarial: loss answers {shape} for {images} images; it is one number, or one per image")


class _Expected(torch.autograd.Function):
    """The mean loss of several forward passes, and the mean of their gradients, with the memory of one pass."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, passes: int, losses: Callable[[Tensor], Tensor]) -> Tensor:
        mean, gradient = pixels.new_zeros(len(pixels)), torch.zeros_like(pixels)
        for _ in range(passes):
            with torch.enable_grad():
                leaf = pixels.detach().requires_grad_()
                found = losses(leaf)
                (slope,) = torch.autograd.grad(found.sum(), leaf)
            mean += found.detach().to(mean.dtype) / passes
            gradient += slope / passes
        ctx.save_for_backward(gradient)
        return mean

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].reshape(-1, *[1] * (gradient.ndim - 1)), None, None


def _of_length(kinds: Any) -> tuple[Any, Any]:
    """Captum's classes for L2: a step along the gradient itself, a start that may lie on any device."""

    class Step(kinds.FGSM):  # type: ignore[misc]
        def _perturb(self, inputs: Any, grads: Any, epsilon: float, targeted: bool, masks: Any) -> Any:
            return tuple(x + epsilon * _unit(slope) for x, slope in zip(inputs, grads, strict=True))

    class Descent(kinds.PGD):  # type: ignore[misc]
        def _random_point(self, center: Tensor, radius: float, norm: str, mask: Any) -> Tensor:
            many = center[:1].numel()
            far = torch.rand(len(center), *[1] * (center.ndim - 1), device=center.device) ** (1.0 / many)
            return center + radius * far * _unit(torch.randn_like(center))

    return Step, Descent


def _unit(direction: Tensor) -> Tensor:
    """Of length 1 for each image; zero stays zero."""
    largest = direction.flatten(1).abs().amax(1).clamp_min(torch.finfo(direction.dtype).tiny)
    scaled = direction / largest.reshape(-1, *[1] * (direction.ndim - 1))  # squares of small gradients would vanish
    lengths = torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp_min(torch.finfo(direction.dtype).tiny)
    unit: Tensor = scaled / lengths.reshape(-1, *[1] * (direction.ndim - 1))
    return unit
