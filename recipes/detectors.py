"""ultralytics' objects for recipes and the command line: which names there are, and opening one.

Apart from `build`, whose models are timm's; ultralytics is optional and loaded inside the functions.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import surgeon
from recipes.wording import nearest
from surgeon.errors import RecipeError, SurgeonError
from surgeon.storage import is_checkpoint
from surgeon.yolo.joining import without_weights

ZOO = Path(__file__).parent / "zoo" / "models"
YAML = (".yaml", ".yml")
TASKS = ("detect", "segment", "pose", "obb")  # those with boxes, which is what a run measures
NEEDED = 'detectors need the package ultralytics; run: pip install "cnn-surgeon[yolo]"'


def needed(module: str = "ultralytics") -> Any:
    """Import a module of ultralytics.

    Raises:
        RecipeError: When ultralytics is not installed, with the command that installs it.

    Example:
        >>> needed("ultralytics.cfg").TASKS[0]
        'detect'
    """
    if importlib.util.find_spec("ultralytics") is None:
        raise RecipeError(NEEDED)
    return importlib.import_module(module)


@contextmanager
def quiet(silent: bool) -> Iterator[None]:
    """Let ultralytics say only what went wrong, where silence is wanted."""
    logger = needed("ultralytics.utils").LOGGER
    before = logger.level
    logger.setLevel(logging.ERROR if silent else before)
    try:
        yield
    finally:
        logger.setLevel(before)


@cache
def names() -> dict[str, Path]:
    """Return the model yamls that have a name, to their files: ultralytics' in every scale, and those shipped here.

    Example:
        >>> names()["yolo11n.yaml"].name
        'yolo11.yaml'
    """
    folder = Path(needed().__file__).parent / "cfg" / "models"
    found: dict[str, Path] = {}
    for path in [*sorted(folder.rglob("*.yaml")), *sorted(ZOO.glob("*.yaml"))]:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        scales = content.get("scales") or ()
        scaled = [re.sub(r"(yoloe?-?v?\d+)(?=[-.])", rf"\g<1>{scale}", path.name, count=1) for scale in scales]
        for name in scaled if len(set(scaled)) == len(scales) > 0 else [path.name]:
            found[name] = path
    return found


def is_detector(name: str) -> bool:
    """Whether a name, as a user writes it, means an ultralytics model: a yaml or ``.pt``, but no recipe file.

    Example:
        >>> is_detector("yolo11n.yaml"), is_detector("resnet50")
        (True, False)
    """
    path = Path(name).expanduser()
    if path.suffix not in YAML:
        return path.suffix == ".pt"
    return not path.is_file() or _describes_a_model(path)


def is_data_yaml(path: Path) -> bool:
    """Whether a file is a data yaml of ultralytics', and no recipe."""
    return path.suffix in YAML and "train" in (content := _content(path)) and "model" not in content


def _describes_a_model(path: Path) -> bool:
    return "backbone" in _content(path)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def _file(name: str) -> str:
    """Return what ultralytics opens by this name.

    Raises:
        RecipeError: When there is no such yaml, with the nearest name.
    """
    path = Path(name).expanduser()
    if path.exists() or path.suffix == ".pt":
        return str(path)
    if importlib.util.find_spec("ultralytics") is None:
        raise RecipeError(f"no file '{name}' in {Path.cwd()}; {NEEDED}")
    if name not in names() and name not in {file.name for file in names().values()}:
        where = f"no file '{name}' in {Path.cwd()}, and ultralytics {needed().__version__} has no model of that name"
        raise RecipeError(f"{where}{nearest(name, names())} (surgeon models --yolo lists them)")
    shipped = ZOO / name
    return str(shipped) if shipped.is_file() else name


def open_detector(name: str, classes: int | None = None, channels: int | None = None, weights: bool = True) -> Any:
    """Return the ultralytics object of a name.

    Args:
        name: A model yaml (one of `names` or a file), a ``.pt`` file, stock or operated, or a folder that
            `surgeon.save` wrote.
        classes: Of the head of a model built from a yaml; left out, what the yaml says.
        channels: Of its images, likewise.
        weights: False fetches none where a yaml names some (a backbone of torchvision's); enough to locate and plan.

    Raises:
        RecipeError: When there is no such model, or it cannot be built.
        LoadError: When an operated checkpoint or a folder is damaged.

    Example:
        >>> open_detector("yolo11n.yaml", classes=3).model.yaml["nc"]
        3
    """
    file, ultralytics = _file(name), needed()
    if Path(file).is_dir() or is_checkpoint(Path(file)):
        return surgeon.load(file)
    try:
        if file.endswith(".pt"):
            return ultralytics.YOLO(file)
        model = _from_yaml(file, weights)
        _fit(model, classes, channels)
    except SurgeonError:
        raise
    except Exception as error:  # ultralytics has no error class of its own: whatever a yaml or a download can cause
        raise RecipeError(f"ultralytics cannot open '{name}': {_first_line(error)}") from None
    return model


def _from_yaml(file: str, weights: bool) -> Any:
    """Build an object from a yaml; without fetching weights, from a copy of it that names none."""
    read, ultralytics = needed("ultralytics.nn.tasks").yaml_model_load(file), needed()
    build = ultralytics.RTDETR if "RTDETR" in str(read["head"][-1][2]) else ultralytics.YOLO
    if weights or without_weights(read) == read:
        return build(file)
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / Path(file).name
        bare.write_text(yaml.safe_dump(without_weights(read)), encoding="utf-8")
        return build(str(bare))


def _fit(model: Any, classes: int | None, channels: int | None) -> None:
    """Build the net anew where the data have another number of classes or channels than its yaml says."""
    structure, wanted = model.model.yaml, {"nc": classes, "channels": channels}
    changed = {key: value for key, value in wanted.items() if value is not None and structure.get(key) != value}
    if changed == {"channels": 3} or not changed:
        return
    fresh = type(model.model)({**structure, **changed}, nc=classes or structure.get("nc"), verbose=False)
    fresh.args, fresh.task = model.model.args, model.task
    model.model = fresh


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def check_task(name: str, model: Any) -> None:
    """Refuse a model without boxes.

    Raises:
        RecipeError: With the tasks that have some.
    """
    if model.task not in TASKS:
        raise RecipeError(f"'{name}' is a {model.task} model; recipes train models with boxes: {', '.join(TASKS)}")


def check_device(device: str | int | list[int]) -> None:
    """Refuse a device this machine does not have.

    Raises:
        RecipeError: In ultralytics' words.
    """
    if str(device) in ("auto", "cpu", "mps"):
        return
    try:
        needed("ultralytics.utils.torch_utils").select_device(device, verbose=False)
    except ValueError as error:
        raise RecipeError(f"train.device: {_first_line(error)}") from None
