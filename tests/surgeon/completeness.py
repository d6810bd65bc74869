"""An independent witness of what a model does to H and W: the proof that ``locate`` misses nothing, invents nothing.

It shares no code with ``locate``: a dispatch mode sees every aten operation of a forward pass on fake tensors, and
global hooks tell in which module it happened. ``witness`` lists the spatial operations in order of call (convs with a
kernel or stride over 1, strided pools, slices that stride two neighbouring axes). Everything else that takes a 4-D
tensor to a 4-D tensor with an axis shrunk at least 1.5 times is counted by class (``classes.py``).
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.site import Site, Sites
from tests.surgeon.classes import class_of

POOLS = {"max_pool2d_with_indices": "max_pool", "max_pool2d": "max_pool", "avg_pool2d": "avg_pool"}
ONE_AXIS = "slice that strides one axis"
Key = tuple[str, str, tuple[int, int], tuple[int, int]]


@dataclass
class Seen:
    """One spatial operation: in which module, what, kernel, stride, and the shape it made."""

    key: Key
    shape: tuple[int, ...]


@dataclass
class Testimony:
    """Spatial operations in order of call, and how often each class of other shrinking operation ran."""

    spatial: list[Seen] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


class Witness(TorchDispatchMode):
    """Notes what every aten operation does to H and W."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(m): n for n, m in model.named_modules()}
        self.stack: list[nn.Module] = []
        self.seen = Testimony()
        self.slices: dict[int, tuple[Tensor, int, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            out = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if "_local_scalar_dense" not in str(func):
                raise
            return 0
        name = func._schema.name.split("::")[1].strip("_")
        if args and isinstance(args[0], Tensor) and args[0].ndim == 4:
            self.see(name, args, out[0] if isinstance(out, (tuple, list)) and out else out)
        return out

    def see(self, name: str, args: Any, out: Any) -> None:
        """Sort one operation on a 4-D tensor into spatial, other or neither."""
        module = self.stack[-1] if self.stack else None
        if name in ("unfold", "im2col"):
            self.seen.others["windows"] += 1
        elif not isinstance(out, Tensor) or out.ndim != 4:
            return
        elif name == "convolution":
            kernel, stride, transposed = tuple(args[1].shape[2:]), tuple(args[3]), args[6]
            if max(*kernel, *stride) > 1 and not transposed:
                self.note("conv", kernel, stride, out)
        elif name in POOLS:
            self.see_pool(POOLS[name], args, out, module)
        elif name == "slice" and len(args) > 4 and args[4] > 1:
            self.see_slice(args[0], out, args[1] % 4, args[4])
        elif shrinks(args[0].shape, out.shape):
            self.seen.others[class_of(name, args, out)] += 1

    def see_pool(self, family: str, args: Any, out: Tensor, module: nn.Module | None) -> None:
        """Strided pools; ``avg_pool1d`` and ``max_pool1d`` run as pools of a map of height 1."""
        kernel, stride = pair(args[1]), pair(args[2] if len(args) > 2 and args[2] else args[1])
        flat = args[0].shape[2] == kernel[0] == stride[0] == 1 and not isinstance(module, (nn.MaxPool2d, nn.AvgPool2d))
        if max(stride) > 1 and flat:
            self.seen.others["pool over a sequence"] += 1
        elif max(stride) > 1:
            self.note(family, kernel, stride, out)

    def see_slice(self, x: Tensor, out: Tensor, axis: int, step: int) -> None:
        """Slicing two axes is two operations: the second one reads what the first one made."""
        _, earlier, first = self.slices.get(id(x), (x, -1, 1))
        if (earlier, axis) in ((1, 2), (2, 3)):
            self.seen.others[ONE_AXIS] -= 1
            self.note("slice", (1, 1), (first, step), out)
        else:
            self.seen.others[ONE_AXIS] += 1
        self.slices[id(out)] = (out, axis, step)

    def note(self, family: str, kernel: tuple[int, ...], stride: tuple[int, ...], out: Tensor) -> None:
        """One spatial operation in the module that runs now."""
        where = self.names.get(id(self.stack[-1]), "") if self.stack else ""
        self.seen.spatial.append(Seen((where, family, pair(kernel), pair(stride)), tuple(out.shape[1:])))


def shrinks(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether H or W shrinks at least 1.5 times, read as (N, C, H, W) or as (N, H, W, C)."""
    return any(after[i] * 1.5 <= before[i] for i in (1, 2, 3))


def pair(value: Any) -> tuple[int, int]:
    """One number or two, as two."""
    value = list(value) if isinstance(value, (tuple, list)) else [value]
    return (value[0], value[-1])


def witness(model: nn.Module, input_size: tuple[int, ...]) -> Testimony:
    """Run ``model`` in evaluation mode on one fake image and tell what happened to H and W."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    for t in [*model.parameters(), *model.buffers()]:
        device = "cpu" if t.is_meta else t.device
        with fake:
            blank = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=device)
        memo[id(t)] = nn.Parameter(blank, t.requires_grad) if isinstance(t, nn.Parameter) else blank
    model = copy.deepcopy(model, memo).eval()
    seen = Witness(model)
    pre = register_module_forward_pre_hook(lambda m, a: seen.stack.append(m))
    post = register_module_forward_hook(lambda m, a, o: (seen.stack.pop(), None)[1], always_call=True)
    try:
        with fake, torch.no_grad():
            image = torch.empty(1, *input_size, dtype=next(model.parameters()).dtype)
            with seen:
                model(image)
    finally:
        pre.remove()
        post.remove()
    return Testimony(seen.seen.spatial, +seen.seen.others)


def key_of(site: Site) -> Key:
    """What the witness calls a site."""
    name = site.type_name.lower()
    pool = "max_pool" if "max" in name else "avg_pool"
    family = "slice" if site.via == "slice" else "conv" if site.kind.endswith("conv") else pool
    return site.owner, family, site.kernel_size or (0, 0), site.stride or (0, 0)


def differences(testimony: Testimony, sites: Sites | list[Site]) -> list[str]:
    """What the witness saw and ``locate`` did not list, and the reverse; empty when they agree.

    Every call counts; of each site the shape it makes, and the order of first calls, must have been seen too.
    """
    spatial = [site for site in sites if site.kind not in ("block", "skip")]
    seen = Counter(event.key for event in testimony.spatial)
    listed: Counter[Key] = Counter()
    for site in spatial:
        listed[key_of(site)] += site.calls
    found = [f"missing x{n}: {key}" for key, n in (seen - listed).items()]
    found += [f"invented x{n}: {key}" for key, n in (listed - seen).items()]
    shapes = {(event.key, event.shape) for event in testimony.spatial}
    found += [
        f"wrong shape: {site.path} makes {site.out_shape}"
        for site in spatial
        if key_of(site) in seen and (key_of(site), site.out_shape) not in shapes
    ]
    order = list(dict.fromkeys(map(key_of, spatial)))
    if not found and order != list(dict.fromkeys(event.key for event in testimony.spatial)):
        found.append(f"wrong order: {order}")
    return found
