"""Fit the 1x1 weights of shift convs to what the convs they replaced answered: least squares on activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from surgeon.errors import NoSiteError
from surgeon.ops.shift_conv import ShiftConv2d, ShiftStdConv2d

RIDGE = 1e-6  # times the mean diagonal: a channel that is zero on all images keeps the problem solvable


def fit(model: nn.Module, before: nn.Module, data: Iterable[Any]) -> list[dict[str, Any]]:
    """Set the weights and biases of the shift convs of ``model`` by least squares on activations, in order of call.

    Each layer is fitted to the output of the conv it replaced, in ``before``, from its own input in ``model``, where
    the layers in front of it are fitted already. Offsets stay. Both models run in evaluation mode, on their device;
    the data are gone through once for each layer. Shift convs in the place of functional calls, and standardised ones,
    are left as they are.

    Args:
        model: Operated by ``shift``; weights are set in place, ``surgeon.undo`` goes back to before the surgery.
        before: The model as it was, a deep copy taken before ``apply``.
        data: Re-iterable batches of images, or of ``(images, targets)``. Some hundred positions per weight are enough.

    Returns:
        One dict per layer: ``path``, ``error_before`` and ``error_after``, the share of the old conv's output (sum of
        squares) that the layer misses, on the inputs it gets once the layers in front are fitted.

    Raises:
        NoSiteError: When no conv of ``before`` has a shift conv in its place in ``model``, or ``data`` holds no images.

    Example:
        >>> import copy, surgeon
        >>> before = surgeon.create_model("test_resnet").eval()
        >>> model = surgeon.apply(copy.deepcopy(before), "shift", 64)
        >>> rows = fit(model, before, [torch.rand(4, 3, 64, 64)])
        >>> len(rows), all(row["error_after"] < row["error_before"] for row in rows)
        (10, True)

    References:
        Deviation: the paper trains from scratch. Asymmetric reconstruction: He et al., Channel Pruning, ICCV 2017.
    """
    paths = _paths(model, before)
    batches = list(data) if isinstance(data, Iterator) else data  # a generator is gone through once
    first = next(iter(batches), None)
    if not paths or first is None:
        what = "no data were given" if paths else "no conv of 'before' is a ShiftConv2d in 'model'"
        raise NoSiteError(f"fit has nothing to do: {what}; pass the operated model, a copy from before, and batches")
    with _evaluating(model), _evaluating(before), torch.no_grad():
        order = _order(model, paths, _images(first))
        return [_fit_one(model, before, path, batches) for path in order]


def _paths(model: nn.Module, before: nn.Module) -> list[str]:
    old = dict(before.named_modules())
    convs = [(path, m) for path, m in model.named_modules() if isinstance(m, ShiftConv2d)]
    return [path for path, m in convs if isinstance(old.get(path), nn.Conv2d) and not isinstance(m, ShiftStdConv2d)]


def _images(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(images, Tensor):
        raise NoSiteError(f"fit found a {type(images).__name__} for images; give tensors, or tuples (images, targets)")
    return images


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _order(model: nn.Module, paths: list[str], images: Tensor) -> list[str]:
    """The paths a forward pass calls, in that order."""
    seen: dict[str, None] = {}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(lambda _m, _x, path=path: seen.update({path: None}))
        for path in paths
    ]
    _forward(model, images, handles)
    return [*seen]


def _calls(model: nn.Module, path: str, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Input and output of each call of the module at ``path`` in one forward pass."""
    found: list[tuple[Tensor, Tensor]] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((inputs[0].clone(), output.clone()))  # what follows may work in place

    _forward(model, images, [model.get_submodule(path).register_forward_hook(keep)])
    return found


def _forward(model: nn.Module, images: Tensor, handles: Sequence[RemovableHandle]) -> None:
    near = next(model.parameters())
    try:
        model(images.to(near.device, near.dtype))
    finally:
        for handle in handles:
            handle.remove()


def _fit_one(model: nn.Module, before: nn.Module, path: str, batches: Iterable[Any]) -> dict[str, Any]:
    layer: ShiftConv2d = model.get_submodule(path)  # type: ignore[assignment]
    sums = _Sums(layer)
    for batch in batches:
        read, wanted = _calls(model, path, _images(batch)), _calls(before, path, _images(batch))
        for (x, _), (_, y) in zip(read, wanted, strict=True):
            sums.add(layer.shifted(x)[:, :, :: layer.stride[0], :: layer.stride[1]], y)
    present = torch.cat([layer.weight[:, :, 0, 0], *([] if layer.bias is None else [layer.bias[:, None]])], 1)
    found = sums.solve()
    width = layer.weight.shape[1]
    layer.weight.copy_(found[:, :width, None, None])
    if layer.bias is not None:
        layer.bias.copy_(found[:, width])
    return {"path": path, "error_before": sums.error(present), "error_after": sums.error(found)}


class _Sums:
    """The sums over positions that a least-squares fit of a layer needs, in float64, group by group."""

    def __init__(self, layer: ShiftConv2d) -> None:
        self.groups, self.constant = layer.groups, layer.bias is not None
        inputs, outputs = layer.in_channels // layer.groups + self.constant, layer.out_channels // layer.groups
        new = layer.weight.new_zeros
        self.gram = new(self.groups, inputs, inputs, dtype=torch.float64)
        self.cross = new(self.groups, inputs, outputs, dtype=torch.float64)
        self.total = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in what the 1x1 conv reads and what it should answer."""
        x, y = (t.double().transpose(0, 1).reshape(self.groups, t.shape[1] // self.groups, -1) for t in (x, y))
        if self.constant:
            x = torch.cat([x, x.new_ones(self.groups, 1, x.shape[2])], 1)
        self.gram += x @ x.mT
        self.cross += x @ y.mT
        self.total += float(y.square().sum())

    def solve(self) -> Tensor:
        """The weights, with the bias as last column: (C_out, C_in/groups [+ 1])."""
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        ridge = RIDGE * diagonal.mean(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        found: Tensor = torch.linalg.solve(self.gram + torch.diag_embed(ridge.expand_as(diagonal)), self.cross)
        return found.mT.reshape(-1, found.shape[1])

    def error(self, weight: Tensor) -> float:
        """The share of the sum of squares that these weights miss."""
        w = weight.double().view(self.groups, -1, weight.shape[1]).mT
        missed = self.total - 2 * float((w * self.cross).sum()) + float((w * (self.gram @ w)).sum())
        return missed / max(self.total, torch.finfo(torch.float64).tiny)
