"""Taps: the places of a network whose features are compared, found by name and read by hooks.

Apart from the distance, which compares what is read here: which axis holds the channels, and that a pass ends with the
last tap, concerns nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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


Named = tuple[str, int | None, bool]  # path, channels where they are known, whether the input is meant


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
        taps: Paths of modules; None to choose. Maps are (N, C, H, W) unless timm says otherwise, tokens (N, L, C).
        input_size: As for ``surgeon.locate``.

    Raises:
        AnalysisError: When a path is no module, does not run, runs more than once, or answers no features.
        SurgeonError: When the input size is neither given nor known.

    Example:
        >>> import timm
        >>> [(tap.path, tap.channels) for tap in find_taps(timm.create_model("test_resnet").eval(), None)]
        [('act1', 32), ('layer1', 32), ('layer2', 48), ('layer3', 192), ('layer4', 96)]
    """
    known = _known(module)
    if taps is not None:
        given = [taps] if isinstance(taps, str) else list(taps)
        wanted = [tap if isinstance(tap, Tap) else _output_of(tap, known) for tap in given]
        _check_names(module, [tap.path for tap in wanted])
        return _looked_at(module, [(tap.path, tap.channels or None, tap.before) for tap in wanted], input_size)
    listed = [(name, *about) for name, about in known.items()]
    if listed and (seen := _looked_at(module, listed, input_size, flat=False)):
        return seen  # without what answers no maps, such as the stages of HRNet, which answer lists
    stages = [(unit.paths[-1], None, False) for unit in units(module, "stage", input_size)]
    seen = _looked_at(module, stages, input_size, flat=False)
    if not seen:
        raise AnalysisError(
            f"no stage of {type(module).__name__} answers maps; name modules: taps=('layer1', 'layer2')"
        )
    return seen


def _output_of(path: str, known: dict[str, tuple[int, bool]]) -> Tap:
    channels, before = known.get(path, (0, False))
    return Tap(path, 0 if before else channels)


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


def _looked_at(module: nn.Module, named: Sequence[Named], input_size: InputSize, flat: bool = True) -> list[Tap]:
    """Taps of the modules, from one pass of a black image; without ``flat`` only those that answer maps."""
    outputs, calls = _outputs(module, named, input_size)
    taps = []
    for path, channels, before in named:
        output = outputs.get(path)
        if calls[path] != 1 or not isinstance(output, Tensor) or not 2 <= output.ndim <= 4:
            if not flat:
                continue
            what = "no tensor of features" if calls[path] == 1 else f"run {calls[path]} times"
            raise AnalysisError(f"tap '{path}' of {type(module).__name__}: {what} in a pass; name another module")
        last = output.ndim == 3 or (output.ndim == 4 and _is_last(module, channels, output))
        if output.ndim > 2 or flat:
            taps.append(Tap(path, output.shape[-1] if last else output.shape[1], last, before))
    return taps


def _is_last(module: nn.Module, channels: int | None, output: Tensor) -> bool:
    if channels is None:
        return getattr(module, "output_fmt", None) == "NHWC"
    return channels != output.shape[1] and channels == output.shape[-1]


def _outputs(module: nn.Module, named: Sequence[Named], input_size: InputSize) -> tuple[dict[str, Any], Counter[str]]:
    outputs: dict[str, Any] = {}
    calls: Counter[str] = Counter()

    def seen(tap: Tap, value: Any) -> None:
        outputs[tap.path] = value[0] if tap.before and isinstance(value, tuple) else value
        calls[tap.path] += 1

    like = next(module.parameters(), torch.empty(0))
    handles = [_watch(module, Tap(path, 0, before=before), seen) for path, _, before in named]
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
