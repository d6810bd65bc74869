"""Which axis of a map holds the channels: told by the layers that make or read it, by its shape only where none does.

Kept apart because shapes alone mislead: a channels-last map of a wide image looks like one in (C, H, W).
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from surgeon.tracing import Trace

CHANNELS_SECOND = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def channels_last(node: fx.Node, recorded: Trace) -> bool:
    """Whether the 4-D value of ``node`` is (N, H, W, C): the nearest layer that makes or reads such a map tells.

    Args:
        node: Of ``recorded.graph``, its value a tensor of four axes.
        recorded: The trace it is in.
    """
    shape = node.meta["val"].shape
    seen, queue = {node}, [node]
    for near in queue:
        if (told := _told(near, recorded)) is not None:
            return told
        if (told := _flattened(near)) is not None:
            return told
        around = [n for n in (*near.all_input_nodes, *near.users) if n not in seen and n.op != "get_attr"]
        alike = [n for n in around if isinstance(n.meta.get("val"), Tensor) and n.meta["val"].shape == shape]
        readers = [n for n in near.users if n not in seen and n not in alike and _reads_as_is(n)]
        seen.update(alike, readers)
        queue += [*alike, *readers]
    _, height, width, channels = shape
    return bool(height == width != channels)


def _flattened(node: fx.Node) -> bool | None:
    """Whether the positions of a map that is, or was, a row of tokens are its first two axes."""
    _, first, second, third = node.meta["val"].shape
    values = [n.meta.get("val") for n in (*node.all_input_nodes, *node.users)]
    rows = [tuple(v.shape[1:]) for v in values if isinstance(v, Tensor) and v.ndim == 3]
    if second > 1 and (first * second, third) in rows:
        return True
    return False if second > 1 and (first, second * third) in rows else None


def _reads_as_is(node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].ndim == 4


def _told(node: fx.Node, recorded: Trace) -> bool | None:
    """What a layer says of its input or output; None where it is no layer that takes channels on one axis."""
    if node.op != "call_module" or "<" in str(node.target):
        return None
    module = recorded.model.get_submodule(str(node.target))
    if isinstance(module, CHANNELS_SECOND):
        return False
    if isinstance(module, nn.Linear):
        return True
    if isinstance(module, nn.LayerNorm):
        return not type(module).__name__.endswith("2d")  # timm's LayerNorm2d has its channels second
    return None
