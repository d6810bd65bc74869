"""The order "conv-spd": the conv runs at the high resolution, then space-to-depth; its readers are widened.

This is the layout of the authors' released networks. Channels are channel-major, so block channel c*s*s holds what the
strided conv computed and the others what it skipped; readers get zero weights for those, so nothing changes at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, fx, nn

from surgeon.edit import Append, Edit, SetAttribute, Swap, twin, untouchable
from surgeon.op import Decision, Refused, Rewrite, read_elsewhere, shared_with
from surgeon.ops.space_to_depth import space_to_depth
from surgeon.ops.spd_windows import conv_windows
from surgeon.ops.widening import Growth, Widening
from surgeon.site import Pair, Site
from surgeon.table import by
from surgeon.tracing import Trace

POINTWISE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Sigmoid, nn.Tanh)


class SpaceToDepth(nn.Module):
    """Space-to-depth at any size: the last rows and columns are completed with zeros.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C*bh*bw, ⌈H/bh⌉, ⌈W/bw⌉), channel-major

    Example:
        >>> import torch
        >>> SpaceToDepth((2, 2))(torch.rand(1, 3, 5, 4)).shape
        torch.Size([1, 12, 3, 2])
    """

    def __init__(self, block: Pair) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Pad to a multiple of the block, then rearrange."""
        bottom, right = -x.shape[2] % self.block[0], -x.shape[3] % self.block[1]
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        return space_to_depth(x, self.block)

    def extra_repr(self) -> str:
        """Show the block."""
        return f"block={self.block}"


def conv_spd(site: Site, conv: nn.Conv2d, recorded: Trace, before: str) -> Decision:
    """The edits for one strided conv: stride 1, space-to-depth behind it, readers widened.

    Args:
        site: A strided conv.
        conv: The layer.
        recorded: The trace it was found in.
        before: "consumer" (after norm and activation) or "norm".
    """
    if site.via != "module" or site.calls > 1:
        return Refused("runs as a function or several times, so its readers differ from call to call")
    if conv_windows(conv)[0].same:
        return Refused("pads by the input size, so a stride-1 conv would pad differently")
    node = next(n for n in recorded.graph.nodes if n.op == "call_module" and n.target == site.path)
    owner, normed = str(node.meta["owner"]), isinstance(_user(node, recorded), nn.modules.batchnorm._BatchNorm)
    folds = hasattr(recorded.model.get_submodule(owner), "forward_fuse")
    if before == "norm" and folds and normed:
        return Refused("has a norm that fuse() folds into it, which one of more channels would forbid; use 'consumer'")
    last, place = (node, site.path) if before == "norm" else _behind(node, owner if folds else None, recorded)
    block = site.stride or (1, 1)
    widening = Widening(recorded, last, Growth.of_blocks(site.out_shape[0], block[0] * block[1]))
    if reason := widening.why_not():
        return Refused(reason)
    for path in [site.path, *widening.readers]:
        if other := shared_with(recorded.model.get_submodule(path), recorded.model):
            return Refused(f"needs another '{path}', which shares a parameter with '{other}'; copy it first")
        if reason := read_elsewhere(path, recorded):
            return Refused(reason)
    edits: list[Edit] = [Swap(site.path, _unstride)]
    edits += [Append(place, partial(_space_to_depth, block))]
    readers = widening.edits()
    reason = f"stride-1 conv, space-to-depth({by(block)}) before the {before}, {len(readers)} readers widened"
    if last is not node and normed:
        reason += f"; in training the norm sees {block[0] * block[1]} times the positions"
    return Rewrite([*edits, *readers, *_feature_info(widening, recorded)], reason)


def _behind(node: fx.Node, folding: str | None, recorded: Trace) -> tuple[fx.Node, str]:
    """What grows, and the module behind which space-to-depth goes.

    Args:
        node: The conv.
        folding: Path of the block around it, where that drops its norm at ``fuse()``: then behind the whole block.
        recorded: The trace.
    """
    last = _behind_norm(node, recorded)
    while folding is not None:
        if folding in node.meta.get("returned_by", ()):
            return node, folding
        if not isinstance(_user(node, recorded), (nn.modules.batchnorm._BatchNorm, nn.Identity, *POINTWISE)):
            break
        node = next(iter(node.users))
    return last, str(last.target)


def _behind_norm(node: fx.Node, recorded: Trace) -> fx.Node:
    """The last module of conv, norm, activation; a pointwise function behind it commutes with space-to-depth.

    A norm without running statistics is not passed: over all positions it has others, also in evaluation.
    """
    for kinds in ((nn.modules.batchnorm._BatchNorm,), POINTWISE):
        module = _user(node, recorded)
        if module is None:
            return node
        user = next(iter(node.users))
        shared = sum(n.target == user.target for n in recorded.graph.nodes if n.op == "call_module") > 1
        of_the_batch = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        if not isinstance(module, kinds) or of_the_batch or shared or untouchable(module):
            continue
        node = user
    return node


def _user(node: fx.Node, recorded: Trace) -> nn.Module | None:
    """The module that alone reads ``node``."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module" or "<" in str(users[0].target):
        return None
    return recorded.model.get_submodule(str(users[0].target))


def _unstride(conv: nn.Module) -> nn.Module:
    new = twin(conv)
    new.stride = (1, 1)  # type: ignore[assignment]
    return new


def _space_to_depth(block: Pair, _module: nn.Module) -> nn.Module:
    return SpaceToDepth(block)


def _feature_info(widening: Widening, recorded: Trace) -> Sequence[Edit]:
    """Timm's feature_info tells the channels of each stage; those that grew are told anew."""
    info = getattr(recorded.model, "feature_info", None)
    entries = getattr(info, "info", info)
    grown: dict[str, int] = {}
    for node, growth in widening.grown.items():
        paths = [str(node.target)] if node.op == "call_module" else []
        grown |= dict.fromkeys([*paths, *node.meta.get("returned_by", [])], len(growth.source))
    if not isinstance(entries, list) or not any(entry.get("module") in grown for entry in entries):
        return []

    def renew(entries: list[dict[str, object]]) -> list[dict[str, object]]:
        return [{**e, "num_chs": grown.get(str(e.get("module")), e["num_chs"])} for e in entries]

    return [SetAttribute("", "feature_info", renew)] if isinstance(info, list) else []
