"""The op ``blurpool``: strided convs and pools run at stride 1, are blurred, and subsampled only then.

Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019, arXiv:1904.11486.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from timm.layers import BlurPool2d as TimmBlurPool2d
from torch import fx, nn

from surgeon.calls import takes_apart
from surgeon.edit import Append, Edit, Prepend
from surgeon.op import (
    AbstractOp,
    Decision,
    Refused,
    Rewrite,
    Unchanged,
    call_of,
    exchange,
    layer_of,
    register_op,
    why_not_exchanged,
)
from surgeon.ops.behind import behind
from surgeon.ops.blur_layers import Blur2d, PadMode, blur_for
from surgeon.ops.dense import OnChannelsLast, pads_by_size, unstride, why_not_dense_conv, why_not_dense_pool
from surgeon.ops.spd_windows import pad_pixels, pair
from surgeon.site import Kind, Site
from surgeon.table import by
from surgeon.tracing import Trace


@register_op
@dataclass(frozen=True)
class BlurPool(AbstractOp):
    """Strided conv or pool -> the same at stride 1, a blur, and subsampling.

    A strided conv runs at stride 1 with its trained weights and the blur comes behind its norm and activation; a 1x1
    conv, of a shortcut say, gets the blur in front, which is the same function for less. A max pool runs at stride 1 in
    front of the blur; an average pool becomes the blur.

    Args:
        filt_size: Side of the binomial filter: 3 is [1, 2, 1], 5 is [1, 4, 6, 4, 1].
        pad_mode: How the blur pads: "reflect" as in the paper, "circular" or "zeros".
        stem: "keep" leaves the model's first conv as it is, as the paper does for its ResNets; "blur" blurs it too, at
            s*s times its cost, the highest of all.
        patchify: Convs whose kernel is their stride: "refuse", or "blur" to run them at stride 1 like the others.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", "blurpool")
        >>> print(model.layer2[0].act1.surgeon_after)
        Blur2d(filt_size=3, stride=(2, 2), pad_mode='reflect')

    Source:
        Section 3.3 and, for the stem, the released networks. Deviation: filters of even size are left out, because they
        move the map by half a pixel and give other sizes.
    """

    name: ClassVar[str] = "blurpool"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"strided_conv", "strided_pool"})

    filt_size: Literal[3, 5, 7] = 3
    pad_mode: PadMode = "reflect"
    stem: Literal["keep", "blur"] = "keep"
    patchify: Literal["refuse", "blur"] = "refuse"

    @property
    def exact(self) -> bool:
        """A blur is another function."""
        return False

    @property
    def one_at_a_time(self) -> bool:
        """Maps between conv and blur grow: code that reads their size is found by tracing anew."""
        return True

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """Refuse with the reason, leave what is a blur or a stem to keep, or rewrite."""
        owner = recorded.model.get_submodule(site.owner)
        if isinstance(owner, TimmBlurPool2d):
            return Unchanged("is a blur pool already")
        if site.via == "slice" and takes_apart(call_of(site, recorded)):
            return Unchanged("with its siblings it takes the map apart into blocks: nothing is dropped")
        return self._pool(site, owner, recorded) if site.kind == "strided_pool" else self._conv(site, owner, recorded)

    def _pool(self, site: Site, owner: nn.Module, recorded: Trace) -> Decision:
        if reason := why_not_exchanged(site, owner):
            return Refused(reason)
        pool = layer_of(site, owner, recorded)
        if reason := why_not_dense_pool(pool):
            return Refused(reason)
        if isinstance(pool, nn.AvgPool2d) and site.out_shape[1:] == (1, 1):
            return Refused(
                f"averages the whole map of {by(site.in_shape[1:])}: nothing is subsampled, so nothing aliases"
            )
        into = f"blur({by(site.stride)})"
        if isinstance(pool, nn.MaxPool2d) and pair(pool.kernel_size) != (1, 1):
            into = f"max pool of stride 1 + {into}"
        return exchange(site, recorded, self._blur_pool, into)

    def _blur_pool(self, _site: Site, pool: nn.Module) -> nn.Module:
        layer = blur_for(pool, self.filt_size, self.pad_mode)
        found = getattr(pool, "slice", None)
        return OnChannelsLast(layer) if found is not None and found.axes == (1, 2) else layer

    def _conv(self, site: Site, conv: nn.Module, recorded: Trace) -> Decision:
        if reason := self._why_not_conv(site, conv):
            return Refused(reason)
        node = next(n for n in recorded.graph.nodes if n.op == "call_module" and n.target == site.path)
        if self.stem == "keep" and node is _first_conv(recorded):
            return Unchanged("is the stem, which the paper's ResNets keep; blur it with stem='blur'")
        blur = partial(self._blur, pair(conv.stride))  # type: ignore[arg-type]
        if site.kernel_size == (1, 1) and pad_pixels(conv) == (0, 0):  # type: ignore[arg-type]
            edits: list[Edit] = [unstride(site.path), Prepend(site.path, blur)]
            return Rewrite(edits, f"blur({by(site.stride)}) + 1x1 conv of stride 1")
        place = behind(node, recorded)
        if isinstance(place, Refused):
            return place
        edit = Append(place.path, blur) if place.output else Prepend(place.path, blur)
        where = f"{'behind' if place.output else 'before'} '{place.path}'"
        return Rewrite([unstride(site.path), edit], f"conv of stride 1, blur({by(site.stride)}) {where}")

    def _blur(self, stride: tuple[int, int], _module: nn.Module) -> nn.Module:
        return Blur2d.by(stride, self.filt_size, self.pad_mode)

    def _why_not_conv(self, site: Site, conv: nn.Module) -> str | None:
        if site.via != "module" or site.calls > 1:
            return "runs as a function or several times, so what follows it differs from call to call"
        if (reason := why_not_dense_conv(conv)) or not isinstance(conv, nn.Conv2d):
            return reason
        if pads_by_size(conv):
            return "pads by input size and stride (TensorFlow's same), so at stride 1 it would pad, and see, otherwise"
        area = (site.stride or (1, 1))[0] * (site.stride or (1, 1))[1]
        if site.kernel_size == site.stride and pad_pixels(conv) == (0, 0) and self.patchify == "refuse":
            return (
                f"cuts the map in patches of {by(site.stride)} that do not overlap: at stride 1 it costs {area} times "
                "as much and mixes neighbours; set patchify='blur' to do so"
            )
        return None


def _first_conv(recorded: Trace) -> fx.Node | None:
    """The first conv the forward calls."""

    def is_conv(node: fx.Node) -> bool:
        if node.op == "call_module" and "<" not in str(node.target):
            return isinstance(recorded.model.get_submodule(str(node.target)), nn.Conv2d)
        return node.op == "call_function" and node.meta["name"] == "conv2d"

    return next((node for node in recorded.graph.nodes if is_conv(node)), None)
