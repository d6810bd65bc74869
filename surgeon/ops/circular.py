"""Circular padding for a model that has another: which edits let a conv or pool pad around, and where none can.

Kept apart from ``aps``, which needs it for its promise, because it is about padding alone.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from surgeon.derived import why_not_derived
from surgeon.edit import Edit, Prepend, SetAttribute
from surgeon.errors import RefusedError
from surgeon.op import Refused, Unchanged
from surgeon.ops.dense import CircularPad2d, conv_windows_at, pads_by_size, why_not_dense_conv
from surgeon.ops.space_to_depth import Window
from surgeon.ops.spd_windows import is_same_pool, pair, pool_windows
from surgeon.site import Site
from surgeon.tracing import Trace


def why_not_around(site: Site, conv: nn.Module) -> Refused | Unchanged | None:
    """Why a conv of stride 1 cannot pad around, or need not."""
    if site.via != "module":
        return Refused("is called as a function, whose padding is fixed in its owner's code; make it a module")
    if (reason := why_not_dense_conv(conv)) or not isinstance(conv, nn.Conv2d):
        return Refused(str(reason))
    if pads_by_size(conv) or (conv.padding == "same" and any(w.reach % 2 for w in conv_windows_at(conv))):
        return Refused("pads one side more than the other, by the input size; such zeros cannot be told apart")
    if not any(w.padding for w in conv_windows_at(conv)):
        return Unchanged("pads nothing")
    reason = why_not_in_front(conv)
    return Refused(reason) if reason else None


def why_not_in_front(conv: nn.Module) -> str | None:
    """Why nothing can pad directly in front of ``conv``, as a verb phrase; None if it can."""
    if any(name.startswith(Prepend.name) for name in conv._modules):
        return "has surgery at its input, which would then see the padding; put this step before that one"
    return why_not_derived(type(conv))


def around_conv(site: Site, recorded: Trace) -> list[Edit]:
    """Let the conv of a site pad around; nothing to do where its outputs are as many as its inputs anyway."""
    conv = recorded.model.get_submodule(site.path)
    if not isinstance(conv, nn.Conv2d):
        raise RefusedError(f"'{site.path}' is no conv any more")
    windows = conv_windows_at(conv)
    if not any(w.reach or w.padding for w in windows):
        return []
    edits: list[Edit] = [Prepend(site.path, partial(_padding, windows)), SetAttribute(site.path, "padding", _nothing)]
    return edits if conv.padding_mode == "zeros" else [*edits, SetAttribute(site.path, "padding_mode", _zeros)]


def pools_around(recorded: Trace) -> list[Edit]:
    """Let every pool of stride 1 pad around."""
    paths = dict.fromkeys(
        str(n.target) for n in recorded.graph.nodes if n.op == "call_module" and "<" not in str(n.target)
    )
    edits: list[Edit] = []
    for path in paths:
        pool = recorded.model.get_submodule(path)
        if not isinstance(pool, (nn.MaxPool2d, nn.AvgPool2d)) or is_same_pool(pool):
            continue
        if pair(pool.stride) == (1, 1) and any(pair(pool.padding)):
            edits += [Prepend(path, partial(_padding, pool_windows(pool))), SetAttribute(path, "padding", _nothing)]
    return edits


def _padding(windows: tuple[Window, Window], _module: nn.Module) -> CircularPad2d:
    return CircularPad2d(windows)


def _nothing(_padding: object) -> tuple[int, int]:
    return 0, 0


def _zeros(_mode: object) -> str:
    return "zeros"
