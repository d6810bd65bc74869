"""An independent witness of what a model does to H and W: the proof that ``locate`` misses nothing, invents nothing.

It shares no code with ``surgeon``: a dispatch mode sees every aten operation of a forward pass on fake tensors, and
global hooks tell in which module it happened. ``witness`` counts, per module, the spatial operations (convs with a
kernel or stride over 1, strided pools, slices that stride two neighbouring axes); everything else that takes a 4-D
tensor to a 4-D tensor with H or W shrunk at least 1.5 times goes to a second list (global pools, crops, window
reshapes, channel splits of tensors whose layout an operation does not know).
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.site import Sites

POOLS = {"max_pool2d_with_indices": "max_pool", "max_pool2d": "max_pool", "avg_pool2d": "avg_pool"}


class Witness(TorchDispatchMode):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(m): n for n, m in model.named_modules()}
        self.stack: list[nn.Module] = []
        self.spatial: Counter = Counter()
        self.others: Counter = Counter()
        self.slices: dict = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        try:
            out = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if "_local_scalar_dense" not in str(func):
                raise
            return 0
        name = func._schema.name.split("::")[1].strip("_")
        result = out[0] if isinstance(out, (tuple, list)) and out else out
        if args and isinstance(args[0], Tensor) and args[0].ndim == 4 and isinstance(result, Tensor):
            if result.ndim == 4:
                self.see(name, args, result)
        return out

    def see(self, name, args, out):
        x, where = args[0], self.names.get(id(self.stack[-1])) if self.stack else ""
        if name == "convolution":
            kernel, stride, transposed = tuple(args[1].shape[2:]), tuple(args[3]), args[6]
            if max(*kernel, *stride) > 1 and not transposed:
                self.spatial[where, "conv", kernel, stride] += 1
        elif name in POOLS:
            kernel, stride = pair(args[1]), pair(args[2] if len(args) > 2 and args[2] else args[1])
            if x.shape[2] == kernel[0] == stride[0] == 1 and x.shape[3] > 1:
                self.others["pool over a sequence"] += max(stride) > 1  # AvgPool1d runs as a pool of height 1
            elif max(stride) > 1:
                self.spatial[where, POOLS[name], kernel, stride] += 1
        elif name == "slice" and len(args) > 4 and args[4] > 1:
            self.see_slice(where, x, out, args[1] % 4, args[4])
        elif shrinks(x.shape, out.shape):
            self.others[name] += 1

    def see_slice(self, where, x, out, axis, step):
        """Slicing two axes is two operations: the second one reads what the first one made."""
        first = self.slices.get(id(x))
        if first is not None and first[1] + 1 == axis and (axis, first[1]) in ((2, 1), (3, 2)):
            self.spatial[where, "slice", (1, 1), (first[2], step)] += 1
            self.others["one-axis slice"] -= 1
        else:
            self.others["one-axis slice"] += 1
        self.slices[id(out)] = (out, axis, step)


def shrinks(before, after):
    """Whether H or W shrinks at least 1.5 times, read as (N, C, H, W) or as (N, H, W, C)."""
    return any(after[i] * 1.5 <= before[i] for i in (1, 2, 3))


def pair(value):
    value = list(value) if isinstance(value, (tuple, list)) else [value]
    return (value[0], value[-1])


def witness(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[Counter, Counter]:
    """Spatial operations by (module, family, kernel, stride), and the other shrinking operations by name."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    memo = {}
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
    return seen.spatial, +seen.others


def located(sites: Sites) -> Counter:
    """The same counts, read off the sites."""
    counts: Counter = Counter()
    for site in sites:
        if site.kind in ("block", "skip"):
            continue
        name = site.type_name.lower()
        family = "slice" if site.via == "slice" else "conv" if site.kind.endswith("conv") else name
        family = "max_pool" if "max" in family else "avg_pool" if "avg" in family else family
        counts[site.owner, family, site.kernel_size, site.stride] += site.calls
    return counts


def differences(model: nn.Module, sites: Sites) -> list[str]:
    """What the witness saw and ``locate`` did not list, and the reverse; empty when they agree."""
    seen, _ = witness(model, sites.input_size)
    listed = located(sites)
    missing = [f"missing x{n}: {key}" for key, n in (seen - listed).items()]
    return missing + [f"invented x{n}: {key}" for key, n in (listed - seen).items()]
