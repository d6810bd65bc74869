"""How much of a model's answer flows through each unit: attributions at all units' outputs at once, by captum.

Apart from the loop over images in `attributing`: here are a few images and the sums that the methods come to.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from analysis.unit_taps import Tap
from surgeon.errors import AnalysisError

UNUSED = {"materialize_grads": True}  # zeros where nothing reads a tensor
BRANCH = "branch_conductance"
Point = tuple[Tensor, Tensor]  # output of a unit and its gradient, (N, values)


@dataclass(frozen=True)
class Job:
    """A few images to explain.

    Attributes:
        objective: Of (images, targets) a number per image.
        taps: At outputs of units.
        images: (N, C, H, W).
        targets: (N,).
        baseline: (N, C, H, W): what the answer is compared with.
        steps: Of a path; even.
        at_once: Images of one forward pass, points of a path counted as such.
    """

    objective: nn.Module
    taps: Sequence[Tap]
    images: Tensor
    targets: Tensor
    baseline: Tensor
    steps: int
    at_once: int

    def split(self, images: int) -> list[Job]:
        """Jobs of that many images."""
        parts = zip(*(torch.split(t, max(1, images)) for t in (self.images, self.targets, self.baseline)), strict=True)
        return [replace(self, images=x, targets=y, baseline=base) for x, y, base in parts]

    def answers(self, images: Tensor) -> Tensor:
        """What the objective says of images, double precision."""
        parts = zip(*(torch.split(t, self.at_once) for t in (images, self.targets)), strict=True)
        with torch.no_grad():
            return torch.cat([self.objective(x, y) for x, y in parts]).double()


def captum_attr(verb: str) -> Any:
    """The package ``captum.attr``.

    Raises:
        AnalysisError: When captum is not installed.

    Example:
        >>> captum_attr("attribution").__name__
        'captum.attr'
    """
    try:
        return importlib.import_module("captum.attr")
    except ImportError as error:
        raise AnalysisError(
            f'{verb} needs the package captum ({error}); run: pip install "cnn-surgeon[attack]"'
        ) from error


def conductance(job: Job) -> Tensor:
    """Layer conductance: gradient at the unit's output times the change of that output, along the path of images.

    The path is straight from the baseline to the image. Captum's ``LayerConductance`` takes the gradient at the
    beginning of each step and a pass over the path for each layer; here it is the mean of both ends (trapezoidal rule),
    whose error falls with the square of the number of steps, and one pass for all units.

    Returns:
        (N, units, 3), double precision: sum of absolute values, sum, and how far that is from the one of half the
        steps.

    References:
        Dhamdhere, Sundararajan and Yan, How Important Is a Neuron?, ICLR 2019, arXiv:1805.12233.
    """
    return torch.cat([_along(part) for part in job.split(job.at_once // (job.steps + 1))])


def branch_conductance(job: Job) -> Tensor:
    """Conductance of what a unit's own values make: of residual blocks with identity skips that of output less input.

    What a skip carries past a block says nothing about the block. Units without such a skip have their conductance.

    Returns:
        As of :func:`conductance`.
    """
    return torch.cat([_along(part, branch=True) for part in job.split(job.at_once // (job.steps + 1))])


def integrated_gradients(job: Job) -> Tensor:
    """Integrated gradients along the straight path of the unit's output, from that of the baseline to its own.

    Everything else stays as it is for the image, so the sum is by how much the answer changes where only this unit
    says what it says of the baseline. Captum's ``LayerIntegratedGradients``, a pass over the path for each unit.

    Returns:
        (N, units, 3), double precision: sum of absolute values, sum, and how far that is from the change of the answer.

    References:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, ICML 2017, arXiv:1703.01365.
    """
    return torch.cat([_integrated(part) for part in job.split(job.at_once)])


def gradient_x_activation(job: Job) -> Tensor:
    """Gradient times output of the unit, at the image; captum's ``LayerGradientXActivation``.

    Returns:
        (N, units, 3), double precision: sum of absolute values, sum, and not a number.

    References:
        Shrikumar et al., Not Just a Black Box, 2016, arXiv:1605.01713 (gradient times input).
    """
    found = []
    for part in job.split(job.at_once):
        products = [value * slope for value, slope in _points(part, part.images, part.targets)]
        found.append(torch.stack([_sums(product, torch.nan) for product in products], 1))
    return torch.cat(found)


METHODS: dict[str, Callable[[Job], Tensor]] = {
    "conductance": conductance,
    BRANCH: branch_conductance,
    "integrated_gradients": integrated_gradients,
    "gradient_x_activation": gradient_x_activation,
}


class Trapezoid:
    """The sum of slope times change over a path, by the trapezoidal rule, of all its points and of every second one.

    Example:
        >>> rule = Trapezoid()
        >>> for x in (0.0, 0.5, 1.0):
        ...     rule.add((torch.tensor([[x]]), torch.tensor([[2 * x]])))
        >>> rule.sums().tolist()
        [[1.0, 1.0, 0.0]]
    """

    def __init__(self) -> None:
        self.count, self.all, self.half = 0, torch.zeros(()), torch.zeros(())
        self.last: Point | None = None
        self.even: Point | None = None

    def add(self, now: Point) -> None:
        """Go on to the next point."""
        if self.last is not None:
            self.all = self.all + _step(self.last, now)
        if self.count % 2 == 0:
            if self.even is not None:
                self.half = self.half + _step(self.even, now)
            self.even = now
        self.last, self.count = now, self.count + 1

    def sums(self) -> Tensor:
        """(N, 3): sum of absolute values, sum, and how far it is from that of half the steps."""
        return _sums(self.all, (self.all.double() - self.half.double()).sum(1).abs())


def _step(before: Point, now: Point) -> Tensor:
    return (before[1] + now[1]) / 2 * (now[0] - before[0])


def _sums(attributed: Tensor, error: Tensor | float) -> Tensor:
    exact = attributed.double()
    signed = exact.sum(1)
    return torch.stack([exact.abs().sum(1), signed, torch.as_tensor(error).to(signed).expand_as(signed)], 1)


def _along(job: Job, branch: bool = False) -> Tensor:
    """Conductance of images whose path fits into one pass, or of one image in several."""
    images, count = len(job.images), max(1, job.at_once // len(job.images))
    rules = [Trapezoid() for _ in job.taps]
    for alphas in torch.split(torch.linspace(0, 1, job.steps + 1, dtype=torch.float64), count):
        path = torch.cat([job.baseline + alpha * (job.images - job.baseline) for alpha in alphas.tolist()])
        found = _points(job, path, job.targets.repeat(len(alphas)), branch)
        for rule, (values, slopes) in zip(rules, found, strict=True):
            for point in zip(torch.split(values, images), torch.split(slopes, images), strict=True):
                rule.add(point)
    return torch.stack([rule.sums() for rule in rules], 1)


def _points(job: Job, images: Tensor, targets: Tensor, branch: bool = False) -> list[Point]:
    """Outputs of all units (less what skips carry) and the gradients there."""
    kind = captum_attr("attribution").LayerGradientXActivation
    given = images.detach().clone().requires_grad_()
    found = kind(job.objective, list(job.taps), multiply_by_inputs=False).attribute(
        given, additional_forward_args=(targets,), grad_kwargs=UNUSED
    )
    values = [_flat(tap.seen, len(images)) for tap in job.taps]
    if branch:
        own = zip(values, job.taps, strict=True)
        values = [v if tap.entered is None else v - _flat(tap.entered, len(images)) for v, tap in own]
    return [(value, _flat(slope, len(images))) for value, slope in zip(values, found, strict=True)]


def _flat(value: Tensor | None, images: int) -> Tensor:
    """(N, values), single precision at least."""
    if value is None:
        raise AnalysisError("attribution: a unit gave no output in this forward pass; leave it out (units=)")
    return value.detach().to(torch.promote_types(value.dtype, torch.float32)).reshape(images, -1)


def _integrated(job: Job) -> Tensor:
    kind = captum_attr("attribution").LayerIntegratedGradients
    whole = job.answers(job.images)
    job.answers(job.baseline)
    bare = [tap.seen for tap in job.taps]
    found = []
    for tap, there in zip(job.taps, bare, strict=True):
        with warnings.catch_warnings():  # of outputs that hold several rows per image, which it counts as images
            warnings.filterwarnings("ignore", "Internal batch size cannot be less")
            attributed = kind(job.objective, tap).attribute(
                job.images, job.baseline, additional_forward_args=(job.targets,), n_steps=job.steps,
                internal_batch_size=job.at_once, grad_kwargs=UNUSED,
            )  # fmt: skip
        tap.held = there
        try:
            change = whole - job.answers(job.images)
        finally:
            tap.held = None
        flat = _flat(attributed, len(job.images))
        found.append(_sums(flat, (flat.double().sum(1) - change).abs()))
    return torch.stack(found, 1)


__all__ = ["BRANCH", "METHODS", "Job", "captum_attr", "conductance", "gradient_x_activation", "integrated_gradients"]
