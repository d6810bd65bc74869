"""What the ``model:`` section of a recipe file may say, and what an entry of ``compare:`` may change in it.

Apart from the other sections because a variant with a model of its own is put together here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from recipes.data_schema import Count, Section, Share

SOURCES = ("timm", "folder", "yolo")
OF_TIMM = ("pretrained", "checkpoint", "num_classes", "in_chans", "drop_rate", "drop_path_rate", "args")


class ModelSection(Section):
    """``model:`` where the network comes from; exactly one of `timm`, `folder`, `yolo`.

    `yolo` is a model yaml of ultralytics' (``yolo11n.yaml``) or your own, a ``.pt`` file, stock or operated, or a
    detector's folder. `checkpoint` is a file of weights (safetensors, or a state dict that torch.load reads without
    code), your own for instance; `folder` was written by `surgeon.save`, which keeps weights and arguments.
    """

    timm: str | None = None
    folder: str | None = None
    yolo: str | None = None
    pretrained: bool = False
    checkpoint: str | None = None
    num_classes: Count | None = None
    in_chans: Count | None = None
    drop_rate: Share | None = None
    drop_path_rate: Share | None = None
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = [key for key in SOURCES if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(f"name exactly one of timm, folder, yolo; named here: {', '.join(named) or 'none'}")
        idle = [key for key in OF_TIMM if getattr(self, key)] if self.timm is None else []
        if idle and self.yolo is not None:
            raise ValueError(
                f"take out {', '.join(idle)}: that is for timm's models; yolo names weights by a .pt file, and classes "
                "come from the data"
            )
        if idle:
            raise ValueError(f"a saved folder has its own weights and arguments; take out {', '.join(idle)}")
        if self.checkpoint is not None and self.pretrained:
            raise ValueError("checkpoint and pretrained both give the weights; take one out")
        if "checkpoint_path" in self.args:
            raise ValueError("name the file as checkpoint, not as args.checkpoint_path")
        return self


def changed_model(model: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``model:`` with the keys that an entry of ``compare:`` names.

    Keys of `args` are changed one by one. A folder stands for itself; another `timm` leaves out `args` and
    `checkpoint`, which are the other model's.

    Example:
        >>> changed_model({"timm": "fcn", "args": {"depth": 3, "width": 256}}, {"args": {"width": 64}})
        {'timm': 'fcn', 'args': {'depth': 3, 'width': 64}}
        >>> changed_model({"timm": "fcn", "in_chans": 1, "args": {"depth": 3}}, {"timm": "vgg11_plain"})
        {'timm': 'vgg11_plain', 'in_chans': 1}
    """
    if change.get("folder") is not None or change.get("yolo") is not None:
        return dict(change)
    base, args = dict(model), change.get("args")
    if change.get("timm", base.get("timm")) != base.get("timm"):
        base = {key: value for key, value in base.items() if key not in ("folder", "yolo", "checkpoint", "args")}
    together = {**base, **change}
    if isinstance(args, Mapping) and isinstance(base.get("args"), Mapping):
        together["args"] = {**base["args"], **args}
    return together
