"""Taps: the places of a network whose features are compared, found by name and read by hooks.

Apart from the distance, which compares what is read here: which axis holds the channels, and that a pass ends with the
last tap, concerns nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from analysis.parts import units
from surgeon.errors import AnalysisError
from surgeon.host import InputSize, input_sizes
from surgeon.randomness import generators_kept


@dataclass(frozen=True)
class Tap:
    """A module whose output is compared.

    Attributes:
        path: Of the module.
        channels: Of its output.
        last: Whether channels are the last axis (tokens, and maps of Swin), not the second.
        before: Whether what goes into the module is meant, as timm says of some nets.
    """

    path: str
    channels: int
    last: bool = False
    before: bool = False

    def positions(self, output: Tensor) -> Tensor:
        """The output as (N, channels, positions).

        Example:
            >>> Tap("blocks.0", 8, last=True).positions(torch.zeros(2, 5, 8)).shape
            torch.Size([2, 8, 5])
        """
        if output.ndim == 2:
            return output[:, :, None]
        return output.flatten(1, -2).transpose(1, 2) if self.last else output.flatten(2)


class _Asked(NamedTuple):
    """A place to look at; what is None is found by looking."""

    path: str
    channels: int | None = None
    before: bool = False
    last: bool | None = None


class _Enough(BaseException):
    """Ends a forward pass when every tap was read; no error, so that no code on the way takes it for one."""


def collect(module: nn.Module, taps: Sequence[Tap], images: Tensor, take: Callable[[Tap, Tensor], Tensor]) -> list[Any]:
    """Run a module until its last tap, and answer what ``take`` makes of each output, in the order of the taps.

    Raises:
        AnalysisError: When a tap does not run, or the images do not fit the module.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(3, 3))  # the last one would not fit
        >>> collect(net, [Tap("1", 2)], torch.zeros(1, 1, 2, 2), lambda tap, output: output.shape)
        [torch.Size([1, 2])]
    """
    found: dict[str, Any] = {}

    def seen(tap: Tap, value: Any) -> None:
        output = value[0] if tap.before and isinstance(value, tuple) else value
        found[tap.path] = take(tap, output.clone() if output.requires_grad else output)  # the net may go on in place
        if len(found) == len(taps):
            raise _Enough

    handles = [_watch(module, tap, seen) for tap in taps]
    try:
        module(images)
    except _Enough:
        return [found[tap.path] for tap in taps]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise AnalysisError(
            f"{type(module).__name__} cannot take images of {tuple(images.shape)}: {reason}; give images of another "
            "size, or size= to resize them"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    missing = next(tap.path for tap in taps if tap.path not in found)
    raise AnalysisError(f"tap '{missing}' of {type(module).__name__} did not run; name modules that every image runs")


def _watch(module: nn.Module, tap: Tap, seen: Callable[[Tap, Any], None]) -> Any:
    target = module.get_submodule(tap.path)
    if tap.before:
        return target.register_forward_pre_hook(lambda _, given: seen(tap, given))
    return target.register_forward_hook(lambda _, __, output: seen(tap, output))


def find_taps(module: nn.Module, taps: Sequence[str | Tap] | None, input_size: InputSize = None) -> list[Tap]:
    """Look at taps by name, or choose them: timm's ``feature_info``, else the last module of each stage.

    Args:
        module: In evaluation mode; one pass of a black image is made.
        taps: Paths of modules; None to choose. Maps are (N, C, H, W) unless timm says otherwise, tokens (N, L, C); a
            :class:`Tap` says itself where its channels are, and how many (0 for as many as there are).
        input_size: As for ``surgeon.locate``.

    Raises:
        AnalysisError: When a path is no module, does not run, runs more than once, answers no features, or other
            channels than a :class:`Tap` says.
        SurgeonError: When the input size is neither given nor known.

    Example:
        >>> import timm
        >>> [(tap.path, tap.channels) for tap in find_taps(timm.create_model("test_resnet").eval(), None)]
        [('act1', 32), ('layer1', 32), ('layer2', 48), ('layer3', 192), ('layer4', 96)]
    """
    known = _known(module)
    if taps is not None:
        given = [taps] if isinstance(taps, str) else list(taps)
        wanted = [_asked_of(tap, known) for tap in given]
        _check_names(module, [one.path for one in wanted])
        return _looked_at(module, wanted, input_size)
    listed = [_Asked(name, *about) for name, about in known.items()]
    if listed and (seen := _looked_at(module, listed, input_size, flat=False)):
        return seen  # without what answers no maps, such as the stages of HRNet, which answer lists
    stages = [_Asked(unit.paths[-1]) for unit in units(module, "stage", input_size)]
    seen = _looked_at(module, stages, input_size, flat=False)
    if not seen:
        raise AnalysisError(
            f"no stage of {type(module).__name__} answers maps; name modules: taps=('layer1', 'layer2')"
        )
    return seen


def _asked_of(tap: str | Tap, known: dict[str, tuple[int, bool]]) -> _Asked:
    if isinstance(tap, Tap):
        return _Asked(tap.path, tap.channels or None, tap.before, tap.last)
    channels, before = known.get(tap, (None, False))
    return _Asked(tap, None if before else channels)


def _known(module: nn.Module) -> dict[str, tuple[int, bool]]:
    """What timm says of the features of its nets: path, channels, and whether the input of the module is meant."""
    info = getattr(module, "feature_info", None)
    listed = getattr(info, "info", info)
    found = {}
    there = dict(module.named_modules())
    for entry in listed if isinstance(listed, (list, tuple)) else ():
        if isinstance(entry, dict) and entry.get("module") in there and isinstance(entry.get("num_chs"), int):
            found[entry["module"]] = (entry["num_chs"], entry.get("hook_type") == "forward_pre")
    return found


def _check_names(module: nn.Module, names: Sequence[str]) -> None:
    there = dict(module.named_modules())
    if not names or len(set(names)) < len(names):
        raise AnalysisError(f"taps are {names}; name one or several modules, each once")
    if unknown := [name for name in names if name not in there or not name]:
        raise AnalysisError(
            f"{type(module).__name__} has no module '{unknown[0]}' to tap; list them by model.named_modules()"
        )


def _looked_at(module: nn.Module, wanted: Sequence[_Asked], input_size: InputSize, flat: bool = True) -> list[Tap]:
    """Taps of the modules, from one pass of a black image; without ``flat`` only those that answer maps."""
    outputs, calls = _outputs(module, wanted, input_size)
    taps = []
    for one in wanted:
        output = outputs.get(one.path)
        if calls[one.path] != 1 or not isinstance(output, Tensor) or not 2 <= output.ndim <= 4:
            if not flat:
                continue
            what = "no tensor of features" if calls[one.path] == 1 else f"run {calls[one.path]} times"
            raise AnalysisError(f"tap '{one.path}' of {type(module).__name__}: {what} in a pass; name another module")
        last = _is_last(module, one.channels, output) if one.last is None else one.last
        if output.ndim > 2 or flat:
            taps.append(Tap(one.path, _channels(module, one, output, last), last, one.before))
    return taps


def _channels(module: nn.Module, one: _Asked, output: Tensor, last: bool) -> int:
    """How many channels there are; as many as a :class:`Tap` says, where it says so."""
    found = output.shape[-1 if last else 1]
    if one.last is not None and one.channels not in (None, found):
        raise AnalysisError(
            f"tap '{one.path}' of {type(module).__name__} answers {tuple(output.shape)}, and Tap(channels="
            f"{one.channels}, last={one.last}) does not fit: axis {'-1' if last else '1'} has {found}; correct it, or "
            "give the path alone"
        )
    return found


def _is_last(module: nn.Module, channels: int | None, output: Tensor) -> bool:
    """Whether channels are the last axis; where both axes may hold them, the network's ``output_fmt`` decides."""
    if output.ndim != 4:
        return output.ndim == 3
    second, last = (channels in (None, output.shape[axis]) for axis in (1, -1))
    return last and (not second or getattr(module, "output_fmt", None) == "NHWC")


def _outputs(module: nn.Module, wanted: Sequence[_Asked], input_size: InputSize) -> tuple[dict[str, Any], Counter[str]]:
    outputs: dict[str, Any] = {}
    calls: Counter[str] = Counter()

    def seen(tap: Tap, value: Any) -> None:
        outputs[tap.path] = value[0] if tap.before and isinstance(value, tuple) else value
        calls[tap.path] += 1

    like = next(module.parameters(), torch.empty(0))
    handles = [_watch(module, Tap(one.path, 0, before=one.before), seen) for one in wanted]
    sizes = input_sizes(module, input_size)
    try:
        with torch.no_grad(), generators_kept():
            module(torch.zeros(1, *sizes[0], dtype=like.dtype, device=like.device))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise AnalysisError(
            f"{type(module).__name__} cannot take an image of {sizes[0]}: {reason}; pass input_size"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return outputs, calls
