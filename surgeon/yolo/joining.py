"""How ultralytics' objects join: which module they hold, how large its images are, how it is built again.

Nothing here imports ultralytics before one of its objects, or a file that names it, is at hand.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.building import LIBRARIES, Builder, Library
from surgeon.derived import own_class
from surgeon.errors import LoadError, RefusedError
from surgeon.host import Host, register_host
from surgeon.yolo.guarding import stand_down, stand_guard

DEFAULT_SIZE, DEFAULT_STRIDE = 640, 32  # ultralytics' own
MISSING = "ultralytics is not installed: pip install 'cnn-surgeon[yolo]'"


def comes_from(thing: Any, module: str, name: str) -> bool:
    """Whether the class of ``thing`` is, or derives from, the class ``name`` of ``module``."""
    return any((cls.__module__, cls.__name__) == (module, name) for cls in type(thing).__mro__)


def is_object(thing: Any) -> bool:
    """Whether it is a ``YOLO``, ``RTDETR`` or another of ultralytics' objects."""
    return comes_from(thing, "ultralytics.engine.model", "Model")


def is_network(thing: Any) -> bool:
    """Whether it is the network inside such an object."""
    return comes_from(thing, "ultralytics.nn.tasks", "BaseModel")


def inner(thing: Any) -> nn.Module | None:
    """The network inside an object of ultralytics'; None where it is no such object.

    Raises:
        RefusedError: When it holds an exported file.
    """
    if not is_object(thing):
        return None
    if not isinstance(thing.model, nn.Module):
        raise RefusedError(
            f"cannot operate on the exported model {thing.model}: its code is fixed; operate on the .pt it was made of"
        )
    return thing.model


def holders(network: nn.Module) -> list[Any]:
    """Ultralytics' objects around ``network``, which itself does not know them; found among all that Python tracks.

    They would train without the surgery, from their yaml, if nobody told them.
    """
    ours: dict[type, bool] = {}

    def holds(thing: Any) -> bool:
        kind = type(thing)
        if kind not in ours:
            ours[kind] = is_object(thing)
        return ours[kind] and thing.__dict__.get("_modules", {}).get("model") is network

    return [thing for thing in gc.get_objects() if holds(thing)]


def image_size(module: nn.Module) -> tuple[int, int] | None:
    """The ``imgsz`` a network of ultralytics' was made or trained for; None where it is none."""
    if not is_network(module):
        return None
    args = getattr(module, "args", None) or {}
    size = (args if isinstance(args, dict) else vars(args)).get("imgsz", DEFAULT_SIZE)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(height), int(width)


def grid(module: nn.Module) -> int | None:
    """The number ultralytics rounds image sides to a multiple of; None where it is no network of its own."""
    if not is_network(module):
        return None
    stride = getattr(module, "stride", None)
    return max(DEFAULT_STRIDE, int(stride.max()) if isinstance(stride, Tensor) else DEFAULT_STRIDE)


def candidates(module: nn.Module) -> Iterator[Builder]:
    """The class and yaml a network of ultralytics' says it was built from."""
    yaml: Any = getattr(module, "yaml", None)
    if is_network(module) and isinstance(yaml, dict):
        drop = [m.p for m in module.modules() if isinstance(m, nn.Dropout)]
        arguments = {
            "cfg": dict(yaml),
            "task": getattr(module, "task", None),
            "names": {str(number): name for number, name in getattr(module, "names", {}).items()},
            "class_width": class_width(module),
            "dropout": max(drop, default=0.0),
            "fused": bool(module.is_fused()),  # type: ignore[operator]
        }
        yield {"yolo": own_class(module).__name__, "arguments": arguments}


def class_width(module: Any) -> int | None:
    """Channels of the class branch of a detector's head; None where it has none.

    It follows the number of classes, but a network trained on for other classes keeps the width it was built with.
    """
    branch = getattr(module.model[-1], "cv3", None)
    first: Any = branch[0] if isinstance(branch, nn.ModuleList) else None
    found = None if first is None else getattr(first[-1], "in_channels", None)
    return found if isinstance(found, int) else None


def build(builder: Builder) -> nn.Module:
    """Build a network of ultralytics' from its yaml, fetching nothing.

    Raises:
        LoadError: When ultralytics is missing, or the class is none of its networks.
    """
    try:
        from ultralytics.nn import tasks
    except ImportError as error:
        raise LoadError(MISSING) from error
    cls, given = getattr(tasks, builder["yolo"], None), builder["arguments"]
    if not (isinstance(cls, type) and issubclass(cls, tasks.BaseModel)):
        raise LoadError(f"ultralytics has no network of its own named {builder['yolo']!r}")
    yaml = copy.deepcopy(given["cfg"])

    def of_classes(number: int) -> Any:
        return cls({**without_weights(yaml), "nc": number}, ch=yaml.get("channels", 3), nc=number, verbose=False)

    module = of_classes(yaml["nc"])
    if given["class_width"] not in (None, class_width(module)):
        module.load(of_classes(given["class_width"]), verbose=False)  # ultralytics' own way to another width
    module.yaml = yaml
    if given["task"] is not None:  # a trainer's network has none
        module.task = given["task"]
    module.names = {int(number): name for number, name in given["names"].items()}
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = given["dropout"]
    network: nn.Module = module
    if given["fused"]:
        raise LoadError("a fused network is not built again: save before fuse()")
    return network


def without_weights(yaml: dict[str, Any]) -> dict[str, Any]:
    """The yaml with no weights named, so that building the network fetches none."""
    bare = copy.deepcopy(yaml)
    for layer in [*bare["backbone"], *bare["head"]]:
        if layer[2] == "TorchVision" and len(layer[3]) > 2:
            layer[3][2] = None
    return bare


def dress(module: nn.Module, builder: Builder, path: Path, more: dict[str, Any]) -> nn.Module:
    """The object around a network loaded from ``path``, ready to train on."""
    from surgeon.yolo.objects import object_around

    thing: nn.Module = object_around(module, path, more)
    return thing


def operated(thing: Any) -> None:
    """Let an object train, save and load with its surgery; a training before it is not resumed."""
    if is_network(thing):
        owners = holders(thing)
        for owner in owners:
            operated(owner)
        if not owners:
            stand_guard(thing)
        return
    from surgeon.yolo.objects import forget_training, keep_surgery

    forget_training(thing)
    keep_surgery(thing)


def restored(thing: Any) -> None:
    """Make it ultralytics' plain object again."""
    if is_network(thing):
        stand_down(thing)
        for owner in holders(thing):
            restored(owner)
        return
    from surgeon.yolo.objects import forget_surgery, forget_training

    forget_training(thing)
    forget_surgery(thing)


def around(thing: Any, module: nn.Module) -> Any:
    """A plain object like ``thing`` that holds ``module``."""
    from surgeon.yolo.objects import plain_around

    return plain_around(thing, module)


register_host(Host(inner, image_size, operated, restored, around, grid))
LIBRARIES["yolo"] = Library(candidates, build, on_meta=False, dress=dress)
