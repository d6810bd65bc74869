"""Maps of which pixels an answer rests on, by captum: one number per pixel of each image.

Apart from the question whether maps move with the image (`saliency_shifts`): here is one batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from analysis.unit_flow import captum_attr
from analysis.unit_taps import Tap
from surgeon.errors import AnalysisError

INPUT = ("saliency", "input_x_gradient", "integrated_gradients", "smoothgrad")
GUIDED = ("guided_backprop", "guided_gradcam")  # which change what ReLU layers do to gradients
AT_UNIT = ("gradcam", "guided_gradcam")
METHODS = (*INPUT, "guided_backprop", "gradcam", "guided_gradcam")
Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Seeing:
    """What maps are made of.

    Attributes:
        objective: Of (images, targets) a number per image.
        tap: At the unit that GradCAM looks at; None where it is not asked for.
        steps: Of integrated gradients.
        samples: Noisy images of SmoothGrad.
        noise: Standard deviation of that noise, as a share of the range of the values of an image.
        at_once: Images of one forward and backward pass.
        seed: Of the noise.
        verb: Name of the public function, for messages.
    """

    objective: nn.Module
    tap: Tap | None = None
    steps: int = 32
    samples: int = 16
    noise: float = 0.15
    at_once: int = 16
    seed: int = 0
    verb: str = "attribution_equivariance"


@dataclass(frozen=True)
class Shown:
    """Images, and what goes with them.

    Attributes:
        images: (N, C, H, W), as they are.
        targets: (N,).
        baseline: Of integrated gradients, as ``images``.
        move: Done to images, baseline and noise before the model sees them.
        first: Number of the first image among all, for the noise.
    """

    images: Tensor
    targets: Tensor
    baseline: Tensor
    move: Move
    first: int = 0


def maps(seeing: Seeing, shown: Shown, method: str) -> Tensor:
    """A map for each image after it was moved, (N, H, W).

    Of saliency, SmoothGrad and guided backpropagation it is the sum over channels of the absolute values, of the others
    the sum, with its sign. SmoothGrad's noise moves with the image; GradCAM's maps are enlarged bilinearly.

    Args:
        seeing: How.
        shown: What.
        method: One of ``METHODS``.

    Raises:
        AnalysisError: When the unit of GradCAM keeps no maps.

    Example:
        >>> from analysis.attribution_objective import Objective
        >>> from analysis.tasks import Classification
        >>> net = Objective(nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)), Classification(), "label")
        >>> image = torch.rand(1, 1, 2, 2)
        >>> found = maps(Seeing(net), Shown(image, torch.tensor([1]), image * 0, lambda x: x), "saliency")
        >>> torch.equal(found.flatten(), net.module[1].weight[1].abs())
        True

    References:
        Simonyan et al. 2014, arXiv:1312.6034 (saliency). Shrikumar et al. 2016, arXiv:1605.01713 (input x gradient).
        Sundararajan et al. 2017, arXiv:1703.01365 (integrated gradients). Smilkov et al. 2017, arXiv:1706.03825
        (SmoothGrad). Springenberg et al. 2015, arXiv:1412.6806 (guided backpropagation). Selvaraju et al. 2017,
        arXiv:1610.02391 (GradCAM and guided GradCAM).
    """
    found = [_maps(seeing, part, method) for part in _parts(shown, seeing.at_once)]
    return torch.cat(found).detach()


def _parts(shown: Shown, count: int) -> list[Shown]:
    starts = range(0, len(shown.images), max(1, count))
    cut = {name: getattr(shown, name).split(max(1, count)) for name in ("images", "targets", "baseline")}
    return [
        replace(shown, **{name: parts[i] for name, parts in cut.items()}, first=shown.first + start)
        for i, start in enumerate(starts)
    ]


def _maps(seeing: Seeing, shown: Shown, method: str) -> Tensor:
    kinds, objective = captum_attr(seeing.verb), seeing.objective
    images, more = shown.move(shown.images).detach().clone(), (shown.targets,)
    with warnings.catch_warnings():  # of gradients and hooks that captum sets itself
        warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients")
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU activations")
        if method == "saliency":
            return _summed(kinds.Saliency(objective).attribute(images, additional_forward_args=more))
        if method == "input_x_gradient":
            return _summed(kinds.InputXGradient(objective).attribute(images, additional_forward_args=more))
        if method == "integrated_gradients":
            found = kinds.IntegratedGradients(objective).attribute(
                images, shown.move(shown.baseline), additional_forward_args=more, n_steps=seeing.steps,
                internal_batch_size=max(seeing.at_once, len(images)),
            )  # fmt: skip
            return _summed(found)
        if method == "smoothgrad":
            return _smooth(seeing, shown)
        if method == "guided_backprop":
            return _summed(_guided(seeing, images, shown).abs())
        small = _gradcam(seeing, images, more)
        return small if method == "gradcam" else _summed(_guided(seeing, images, shown)) * small


def _summed(found: Tensor) -> Tensor:
    """Over channels, (N, H, W), single precision at least."""
    return found.to(torch.promote_types(found.dtype, torch.float32)).sum(1)


def _guided(seeing: Seeing, images: Tensor, shown: Shown) -> Tensor:
    """Guided backpropagation; once it is seen whether the hooks leave the answer as it is."""
    objective: Any = seeing.objective
    found: Tensor = (
        captum_attr(seeing.verb).GuidedBackprop(objective).attribute(images, additional_forward_args=(shown.targets,))
    )
    if shown.first == 0:
        hooked = objective.last
        with torch.no_grad():
            plain = objective(images, shown.targets)
        if not torch.allclose(hooked, plain, rtol=1e-4, atol=1e-6):
            raise AnalysisError(
                f"{seeing.verb}: guided backpropagation puts copies before ReLU layers, which changes the answer: "
                "this model's code counts on what these layers write into their input; choose another method"
            )
    return found


def _smooth(seeing: Seeing, shown: Shown) -> Tensor:
    """The mean of saliency maps of noisy images; each image's noise is its own, and moves with it."""
    kind = captum_attr(seeing.verb).Saliency(seeing.objective)
    flat = shown.images.flatten(1)
    spread = (seeing.noise * (flat.amax(1) - flat.amin(1))).reshape(-1, 1, 1, 1)
    total = torch.zeros_like(shown.images[:, 0], dtype=torch.promote_types(shown.images.dtype, torch.float32))
    generators = [torch.Generator().manual_seed(_seed(seeing.seed, shown.first + i)) for i in range(len(flat))]
    for _ in range(seeing.samples):
        drawn = torch.stack([torch.randn(shown.images.shape[1:], generator=one) for one in generators])
        noisy = shown.move(shown.images + spread * drawn.to(shown.images)).detach().clone()
        total = total + _summed(kind.attribute(noisy, additional_forward_args=(shown.targets,)))
    return total / seeing.samples


def _seed(seed: int, image: int) -> int:
    return (seed * 1_000_003 + image) % 2**63


def _gradcam(seeing: Seeing, images: Tensor, more: tuple[Tensor, ...]) -> Tensor:
    kinds: Any = captum_attr(seeing.verb)
    given = images.clone().requires_grad_()  # parameters have no gradients, so that the unit's come from the image
    small = kinds.LayerGradCam(seeing.objective, seeing.tap).attribute(
        given, additional_forward_args=more, relu_attributions=True, grad_kwargs={"materialize_grads": True}
    )
    if small.ndim != 4 or small.shape[1] != 1:
        raise AnalysisError(f"{seeing.verb}: GradCAM needs maps (N, C, H, W) of a unit, and got {tuple(small.shape)}")
    small = small.detach().to(torch.promote_types(small.dtype, torch.float32))
    return nn.functional.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


__all__ = ["AT_UNIT", "GUIDED", "INPUT", "METHODS", "Seeing", "Shown", "maps"]
