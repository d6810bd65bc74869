"""What the ``train:`` of a detector's recipe may say: ultralytics' own settings, checked by ultralytics itself.

Apart from `schema` because keys and ranges are ultralytics', in the version that is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from recipes.data_schema import Count, Section
from recipes.detectors import needed
from recipes.wording import nearest
from surgeon.errors import RecipeError

ULTRALYTICS = "ultralytics"  # type of the errors found here
OPTIMIZERS = ("auto", "SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp")
OF_TIMM = {"lr": "lr0", "opt": "optimizer", "batch_size": "batch", "size": "imgsz", "warmup_lr": "warmup_bias_lr"}
OF_THE_RUN = {  # settings of ultralytics that a run fills in itself
    "model": "the model is named by model: {yolo: ...}",
    "data": "the data are named by data: {dataset: ...}",
    "pretrained": "the weights are those of model: {yolo: ...}; name a .pt file there",
    "task": "the task is the model's",
    "mode": "a recipe trains",
    "cfg": "write the settings of that file here",
    "project": "the folder of the results is named by --out",
    "name": "the folder of the results is named by --out",
    "save_dir": "the folder of the results is named by --out",
    "exist_ok": "a run continues or refuses a folder by itself",
    "resume": "a run continues by itself what its folder holds (--no-resume starts over)",
    "save": "a run always keeps its checkpoints",
}
NUMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {  # what ultralytics itself checks too late
    "imgsz": (lambda n: type(n) is int and n >= 1, "one number of pixels, at least 1"),
    "workers": (lambda n: type(n) is int and n >= 0, "a whole number, at least 0"),
    "batch": (
        lambda n: type(n) in (int, float) and (n == -1 or 0 < n < 1 or (n >= 1 and n == int(n))),
        "a positive whole number, a share of the memory between 0 and 1, or -1 for ultralytics' own choice",
    ),
}


class DetectTrain(Section):
    """``train:`` of a detector, in ultralytics' words; `epochs` ... `workers` are those a recipe reads itself.

    Any other of ultralytics' settings may stand beside them (``lr0``, ``mosaic``, ``freeze`` ...) and keeps
    ultralytics' default where it does not. `batch` is the number of images per forward pass over all devices, -1 or a
    share of the memory for ultralytics' own choice; `device` may name several, ``0,1``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    epochs: Count = 100
    batch: int | float = 16
    imgsz: Count = 640
    seed: int = 0
    device: str | int | list[int] = "auto"
    workers: int = 8

    @model_validator(mode="before")
    @classmethod
    def _by_ultralytics(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        try:
            defaults, check = needed("ultralytics.utils").DEFAULT_CFG_DICT, needed("ultralytics.cfg").check_cfg
        except RecipeError as error:
            raise ValueError(str(error)) from None
        checked = {key: _number(value, defaults.get(key)) for key, value in given.items()}
        problems = [
            InitErrorDetails(type=PydanticCustomError(ULTRALYTICS, "{text}", {"text": text}), loc=(key,), input=value)
            for key, value in checked.items()
            for text in _problems(key, value, defaults, check)
        ]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return checked

    def arguments(self) -> dict[str, Any]:
        """Return the settings as ``model.train`` takes them."""
        return {**self.model_dump(), "device": None if self.device == "auto" else self.device}

    @staticmethod
    def cut(settings: Mapping[str, Any], epochs: int) -> dict[str, Any]:
        """Return settings for a trial: few epochs, on 64 images to train and 32 to validate unless fewer are named.

        Example:
            >>> DetectTrain.cut({"epochs": 300, "lr0": 0.02}, 2)
            {'epochs': 2, 'lr0': 0.02, 'warmup_epochs': 0, 'fraction': [64, 32]}
        """
        few = min(settings.get("epochs", epochs), epochs)
        images = {} if "fraction" in settings else {"fraction": [64, 32]}
        return {**settings, "epochs": few, "warmup_epochs": 0, **images}


def _number(value: Any, default: Any) -> Any:
    """Read ``1e-3``, a text in YAML, as the number it is where ultralytics' default is one."""
    if not isinstance(value, str) or not isinstance(default, (int, float)) or isinstance(default, bool):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _problems(key: str, value: Any, defaults: Mapping[str, Any], check: Any) -> Iterator[str]:
    if key in OF_THE_RUN:
        yield f"is not for train: {OF_THE_RUN[key]}"
    elif key not in defaults:
        url = "https://docs.ultralytics.com/usage/cfg"
        hint = f"; did you mean '{OF_TIMM[key]}'?" if key in OF_TIMM else nearest(key, defaults)
        yield f"unknown key '{key}'{hint} (ultralytics' settings: {url})"
    elif key == "device" and value == "auto":
        return
    elif key in NUMBERS and not NUMBERS[key][0](value):
        yield f"must be {NUMBERS[key][1]} (found {value!r})"
    elif key == "optimizer" and str(value).lower() not in (lower := [name.lower() for name in OPTIMIZERS]):
        yield f"unknown optimiser '{value}'{nearest(str(value).lower(), lower)} (allowed: {', '.join(OPTIMIZERS)})"
    else:
        try:
            check({key: value})
        except (TypeError, ValueError) as error:
            yield str(error)
