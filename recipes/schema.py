"""What a recipe file may say: one pydantic class per section, strict, with the ranges of every setting.

The only file that knows pydantic's classes; reading files and wording of errors live in `loading` and `problems`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Pair = tuple[float, float]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]

SPECIAL_DATASETS = ("digits", "tiny-imagenet", "small-imagenet-32", "folder")
PREFIXES = ("folder:", "torch/", "hfds/", "hfids/", "wds/", "tfds/")
NEEDS_NUM_CLASSES = ("hfds/", "hfids/", "wds/", "tfds/")
PROBES: tuple[str, ...] = ()  # analyses a recipe may name; they come with the package `analysis`
PATTERNS = {  # what the two patterns above mean, in words
    "name": "must begin with a letter or digit, then letters, digits, '.', '_' or '-' (it names a folder)",
    "device": "must be auto, cpu, cuda, cuda:0 (or another number) or mps",
}


def _height_width(value: Any) -> Any:
    pair = [value, value] if isinstance(value, int) else value
    if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(n, int) and n >= 1 for n in pair):
        return tuple(pair)
    raise ValueError(f"must be one number of pixels or [height, width], each at least 1 (found {value!r})")


Size = Annotated[tuple[int, int], BeforeValidator(_height_width)]


class Section(BaseModel):
    """A mapping of the file: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ModelSection(Section):
    """``model:`` where the network comes from; exactly one of `timm`, `folder`, `yolo`."""

    timm: str | None = None
    folder: str | None = None
    yolo: str | None = None
    pretrained: bool = False
    num_classes: Count | None = None
    in_chans: Count | None = None
    drop_rate: Share | None = None
    drop_path_rate: Share | None = None
    args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = [key for key in ("timm", "folder", "yolo") if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(f"name exactly one of timm, folder, yolo; named here: {', '.join(named) or 'none'}")
        if self.yolo is not None:
            raise ValueError("detectors (yolo) are not trained by recipes in this version; name a timm classifier")
        return self


class DigitsData(Section):
    """``data:`` with ``dataset: digits``: scikit-learn's 1,797 real digits, drawn `size` pixels wide on a canvas.

    With `placement: random` training positions are redrawn every epoch; the validation images stay as they are.
    """

    dataset: Literal["digits"] = "digits"
    size: Annotated[int, Field(ge=8)] = 32
    canvas: Annotated[int, Field(ge=8)] | None = None
    placement: Literal["random", "centre"] = "random"
    channels: Literal[1, 3] = 1
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    split_seed: Annotated[int, Field(ge=0)] = 0
    max_train: Count | None = None
    max_val: Count | None = None

    @model_validator(mode="after")
    def _digit_fits(self) -> Self:
        if self.canvas is not None and self.canvas < self.size:
            raise ValueError(f"canvas ({self.canvas}) is smaller than the digit's size ({self.size})")
        return self


class ImageData(Section):
    """``data:`` for every other data set: files on disk, with timm's transforms and timm's names for them.

    `crop_padding` or `rotation` select the small-image pipeline of the CIFAR papers (pad, random crop, flips, rotation)
    instead of timm's random resized crop.
    """

    dataset: str
    root: str | None = None
    train_split: str = "train"
    val_split: str | None = None
    num_classes: Annotated[int, Field(ge=2)] | None = None
    download: bool = False
    num_train: Count | None = None
    num_val: Count | None = None
    size: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest", "random"] | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    no_aug: bool = False
    train_crop_mode: Literal["rrc", "rkrc", "rkrr"] | None = None
    scale: Pair | None = None
    ratio: Pair | None = None
    hflip: Share = 0.5
    vflip: Share = 0.0
    color_jitter: NonNegative = 0.4
    auto_augment: str | None = None
    reprob: Share = 0.0
    crop_padding: Annotated[int, Field(ge=0)] | None = None
    rotation: NonNegative = 0.0
    max_train: Count | None = None
    max_val: Count | None = None

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, value: str) -> str:
        if value in SPECIAL_DATASETS or value.startswith(PREFIXES):
            return value
        raise ValueError(f"unknown data set|{value}")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.dataset.startswith(NEEDS_NUM_CLASSES) and self.num_classes is None:
            raise ValueError(f"num_classes is required for {self.dataset!r}: the number cannot be read from the data")
        if self.dataset in SPECIAL_DATASETS and self.root is None:
            raise ValueError(f"root is required for {self.dataset!r}: the folder the data lies in")
        return self


def _data_kind(value: Any) -> str:
    name = value.get("dataset") if isinstance(value, dict) else getattr(value, "dataset", None)
    return "digits" if name == "digits" else "images"


DataSection = Annotated[
    Annotated[DigitsData, Tag("digits")] | Annotated[ImageData, Tag("images")], Discriminator(_data_kind)
]


class TrainSection(Section):
    """``train:`` how to fine-tune, in timm's words.

    `batch_size` is the number of images per forward pass over all processes together; an optimiser update sees
    ``batch_size * grad_accum_steps`` images. `lr` is the peak learning rate, used as it is.
    """

    epochs: Count = 20
    batch_size: Count = 128
    grad_accum_steps: Count = 1
    opt: str = "sgd"
    lr: Positive = 0.05
    weight_decay: NonNegative = 0.0
    momentum: Share = 0.9
    opt_kwargs: dict[str, Any] = {}
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    sched: Literal["cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "none"] = "cosine"
    sched_on_updates: bool = False
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_lr: NonNegative = 1e-5
    min_lr: NonNegative = 0.0
    decay_epochs: Positive | None = None
    decay_milestones: tuple[Count, ...] = (90, 180, 270)
    decay_rate: Positive = 0.1
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    mixup_prob: Share = 1.0
    mixup_switch_prob: Share = 0.5
    mixup_off_epoch: Annotated[int, Field(ge=0)] = 0
    model_ema: bool = False
    model_ema_warmup: bool = False
    model_ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9998
    clip_grad: Positive | None = None
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    amp: bool = False
    amp_dtype: Literal["float16", "bfloat16"] = "bfloat16"
    channels_last: bool = False
    sync_bn: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Device = "auto"
    workers: Annotated[int, Field(ge=0)] = 0
    keep_epochs: tuple[Annotated[int, Field(ge=0)], ...] = ()
    tensorboard: bool = False

    @field_validator("opt")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        from timm.optim import list_optimizers

        if value.lower() in list_optimizers():
            return value
        raise ValueError(f"unknown optimiser|{value}")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        late = [epoch for epoch in self.keep_epochs if epoch > self.epochs]
        if late:
            raise ValueError(f"keep_epochs names {late}, but training ends with epoch {self.epochs}")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be less than epochs ({self.epochs})")
        if self.batch_size % 2 and (self.mixup or self.cutmix):
            raise ValueError(f"mixup and cutmix pair images, so batch_size ({self.batch_size}) must be even")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr:g}) must not exceed lr ({self.lr:g})")
        return self


class VariantSection(Section):
    """One entry of ``compare:``; what it names replaces the recipe's `surgery` and the keys of its `train`."""

    surgery: list[Any] | None = None
    train: dict[str, Any] = {}


class RecipeFile(Section):
    """A whole recipe: model, optional training before the surgery, surgery, data, fine-tuning, analyses.

    Read one with `recipes.load` (a file or the name of a shipped recipe) or `recipes.parse` (a dict).
    `pretrain` trains the untouched model first; every variant of `compare` then starts from those very weights,
    with the same data order.
    """

    name: Name
    model: ModelSection
    data: DataSection | None = None
    pretrain: TrainSection | None = None
    surgery: list[Any] = []
    keep_originals: bool = True
    train: TrainSection | None = None
    compare: dict[Name, VariantSection] = {}
    analysis: list[Any] = []

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.data is None and (self.train or self.pretrain):
            raise ValueError("data is required where there is train or pretrain")
        if "pretrain" in self.compare:
            raise ValueError("compare.pretrain: this name is taken by the folder of the pretrain section; use another")
        if self.train is None and any(variant.train for variant in self.compare.values()):
            raise ValueError("compare overrides train, but there is no train section to start from")
        return self

    def variants(self) -> dict[str, RecipeFile]:
        """Return the recipes this one compares, each complete in itself; just itself where it compares nothing.

        Example:
            >>> import recipes
            >>> file = recipes.parse({"name": "two", "model": {"timm": "resnet18"}, "compare": {"a": {}, "b": {}}})
            >>> list(file.variants())
            ['a', 'b']
        """
        if not self.compare:
            return {self.name: self}
        return {name: self._variant(name, entry) for name, entry in self.compare.items()}

    def before_surgery(self) -> RecipeFile | None:
        """Return the recipe that trains the untouched model first, or None where there is no such training."""
        if self.pretrain is None:
            return None
        change: dict[str, Any] = {"name": f"{self.name}.pretrain", "train": self.pretrain, "pretrain": None}
        return self.model_copy(update={**change, "surgery": [], "compare": {}})

    def quick(self) -> RecipeFile:
        """Return this recipe cut down to a trial: at most 3 epochs before the surgery and 2 after, 2,048 images.

        Example:
            >>> import recipes
            >>> recipes.load("digits_spd").quick().train.epochs
            2
        """

        def cut(settings: dict[str, Any], epochs: int) -> dict[str, Any]:
            few = min(settings.get("epochs", epochs), epochs)
            kept = [epoch for epoch in settings.get("keep_epochs", ()) if epoch <= few]
            return {**settings, "epochs": few, "warmup_epochs": 0, "keep_epochs": kept}

        content = self.model_dump()
        for key, epochs in (("pretrain", 3), ("train", 2)):
            if content[key]:
                content[key] = cut(content[key], epochs)
        for entry in content["compare"].values():
            entry["train"] = cut(entry["train"], 2) if entry["train"] else {}
        if content["data"]:
            limits = {"max_train": 2048, "max_val": 512}
            content["data"] |= {key: min(content["data"][key] or limit, limit) for key, limit in limits.items()}
        return RecipeFile.model_validate(content)

    def _variant(self, name: str, entry: VariantSection) -> RecipeFile:
        surgery = self.surgery if entry.surgery is None else entry.surgery
        train = self.train and TrainSection.model_validate({**self.train.model_dump(), **entry.train})
        change: dict[str, Any] = {
            "name": f"{self.name}.{name}",
            "surgery": surgery,
            "train": train,
            "compare": {},
            "pretrain": None,
        }
        return self.model_copy(update=change)
