"""What the ``data:`` section of a recipe file may say, and the types of settings all sections share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from recipes.wording import nearest

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Pair = tuple[float, float]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]

SPECIAL_DATASETS = ("digits", "tiny-imagenet", "small-imagenet-32", "folder")
PREFIXES = ("folder:", "torch/", "hfds/", "hfids/", "wds/", "tfds/")
NEEDS_NUM_CLASSES = ("hfds/", "hfids/", "wds/", "tfds/")
TIMM_PIPELINE = [
    "interpolation",
    "crop_pct",
    "no_aug",
    "train_crop_mode",
    "scale",
    "ratio",
    "color_jitter",
    "auto_augment",
    "reprob",
]  # settings of timm's transforms that the small-image pipeline has no use for


def _height_width(value: Any) -> Any:
    pair = [value, value] if isinstance(value, int) else value
    if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(n, int) and n >= 1 for n in pair):
        return tuple(pair)
    raise ValueError(f"must be one number of pixels or [height, width], each at least 1 (found {value!r})")


Size = Annotated[tuple[int, int], BeforeValidator(_height_width)]


class Section(BaseModel):
    """A mapping of the file: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class DigitsData(Section):
    """``data:`` with ``dataset: digits``: scikit-learn's 1,797 real digits, drawn `size` pixels wide on a canvas.

    With `placement: random` training positions are redrawn every epoch; with `fixed` each digit keeps the place drawn
    for the first one, so that there is no augmentation. The validation images, at random places too, always stay.
    """

    dataset: Literal["digits"] = "digits"
    size: Annotated[int, Field(ge=8)] = 32
    canvas: Annotated[int, Field(ge=8)] | None = None
    placement: Literal["random", "fixed", "centre"] = "random"
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
        idle = [key for key in TIMM_PIPELINE if getattr(self, key) != type(self).model_fields[key].default]
        if self.small and idle:
            raise ValueError(
                f"crop_padding and rotation select the small-image pipeline, which has no {', '.join(idle)}; "
                "take one or the other out"
            )
        return self

    @property
    def small(self) -> bool:
        """Whether the small-image pipeline is selected."""
        return self.crop_padding is not None or self.rotation > 0


def _data_kind(value: Any) -> str:
    name = value.get("dataset") if isinstance(value, dict) else getattr(value, "dataset", None)
    return "digits" if name == "digits" else "images"


DataSection = Annotated[
    Annotated[DigitsData, Tag("digits")] | Annotated[ImageData, Tag("images")], Discriminator(_data_kind)
]


class YoloData(Section):
    """``data:`` of a detector: a data yaml as ultralytics reads it, one of its own by name (``coco8.yaml``) or a file.

    It names the images, splits and classes; ultralytics fetches its own data sets where they are missing.
    """

    dataset: str

    @field_validator("dataset")
    @classmethod
    def _a_yaml(cls, value: str) -> str:
        if value.endswith((".yaml", ".yml")):
            return value
        raise ValueError(
            f"'{value}' is no data set for detectors{nearest(value, ['digits_detection'])} "
            "(allowed: a data yaml, such as coco8.yaml or a file of yours, and digits_detection)"
        )


class DigitsDetectionData(Section):
    """``data:`` with ``dataset: digits_detection``: real digits, many and small, on texture, written on the spot.

    `image_size`, `object_size` (smallest and largest) are pixels; `objects` is the number of digits per image at most;
    `root` is where the images are written, the folder of the run where it is left out.
    """

    dataset: Literal["digits_detection"] = "digits_detection"
    image_size: Annotated[int, Field(ge=32, le=2048)] = 160
    images: Count = 400
    val_images: Count = 100
    seed: Annotated[int, Field(ge=0)] = 0
    object_size: tuple[Annotated[int, Field(ge=8)], int] = (8, 64)
    objects: Count = 12
    root: str | None = None

    @model_validator(mode="after")
    def _digits_fit(self) -> Self:
        (low, high), most = self.object_size, self.image_size * 2 // 3
        if not low <= high <= most:
            raise ValueError(f"object_size is [{low}, {high}]; write smallest <= largest <= {most} (2/3 of image_size)")
        return self

    def settings(self) -> dict[str, Any]:
        """Return what `recipes.digits_detection.write` takes."""
        return self.model_dump(exclude={"dataset", "root"})


def _detection_kind(value: Any) -> str:
    name = value.get("dataset") if isinstance(value, dict) else getattr(value, "dataset", None)
    return "digits_detection" if name == "digits_detection" else "yaml"


DetectionData = Annotated[
    Annotated[DigitsDetectionData, Tag("digits_detection")] | Annotated[YoloData, Tag("yaml")],
    Discriminator(_detection_kind),
]


def section_of(data: Any, detection: bool) -> type[Section]:
    """Return the class that reads a ``data:`` section, of a classifier's recipe or a detector's."""
    if detection:
        return DigitsDetectionData if _detection_kind(data) == "digits_detection" else YoloData
    return DigitsData if _data_kind(data) == "digits" else ImageData
