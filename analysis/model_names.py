"""What a model is called in results. Apart from them so that all call it alike."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from torch import nn


def model_name(module: nn.Module) -> str:
    """Timm's architecture, ultralytics' yaml, else the class.

    Example:
        >>> import timm
        >>> model_name(timm.create_model("test_resnet")), model_name(nn.Linear(1, 1))
        ('test_resnet', 'Linear')
    """
    config: Any = getattr(module, "pretrained_cfg", None) or {}
    yaml: Any = getattr(module, "yaml", None) or {}
    name = config.get("architecture") if isinstance(config, dict) else None
    file = str(yaml.get("yaml_file") or "") if isinstance(yaml, dict) else ""
    return str(name or PurePosixPath(file.replace("\\", "/")).stem or type(module).__name__)


__all__ = ["model_name"]
