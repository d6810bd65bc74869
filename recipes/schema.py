"""What a recipe file may say: one pydantic class per section, strict, with the ranges of every setting.

Only this file and `data_schema` know pydantic's classes; reading files and wording of errors live in `loading` and
`problems`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from recipes.data_schema import Count, DataSection, DetectionData, Name, NonNegative, Positive, Section, Share
from recipes.detect_schema import DetectTrain
from recipes.model_schema import ModelSection, changed_model

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]

TAKEN = (
    "recipe.yaml",
    "environment.jsonl",
    "summary.json",
    "summary.txt",
    "curves.png",
    "pretrain",
    "start.pt",
    "data",
)
PROBES = (  # analyses a recipe may name
    "robustness",
    "joint_robustness",
    "search_joint",
    "shift_sparsity",
    "resolution",
    "translation",
    "consistency",
    "spatial_dependence",
    "attribution",
    "attribution_equivariance",
)
PATTERNS = {  # what the two patterns above mean, in words
    "name": "must begin with a letter or digit, then letters, digits, '.', '_' or '-' (it names a folder)",
    "device": "must be auto, cpu, cuda, cuda:0 (or another number) or mps",
}


class ShiftSection(Section):
    """``train.shift:`` how the offsets of shift layers learn where to move; they are a parameter group of their own.

    `weight` times the penalty is added to the loss (λ of Eq. 4 in Chen et al. 2019, which tries 0, 1e-4, 4e-4, 5e-4);
    ``l2`` is half the sum of squares, so under SGD its `weight` acts as weight decay, and the optimiser's own leaves
    offsets alone. From the share `freeze_at` of all updates on, offsets stay; 1 never freezes them.
    """

    penalty: Literal["l1", "l2"] = "l2"
    weight: NonNegative = 0.0
    freeze_at: Share = 0.75
    lr_scale: Positive = 1.0


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
    opt_kwargs: dict[str, Any] = Field(default_factory=dict)
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
    shift: ShiftSection | None = None

    @staticmethod
    def cut(settings: Mapping[str, Any], epochs: int) -> dict[str, Any]:
        """Return settings for a trial of few epochs."""
        few = min(settings.get("epochs", epochs), epochs)
        kept = [epoch for epoch in settings.get("keep_epochs", ()) if epoch <= few]
        changed = {"epochs": few, "warmup_epochs": 0, "keep_epochs": kept}
        if settings.get("sched") in ("wsd", "rsqrt"):  # too few epochs for their phases
            changed.update(sched="cosine", decay_epochs=None)
        return {**settings, **changed}

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
        if self.sched == "rsqrt" and not self.warmup_epochs:
            raise ValueError("sched rsqrt falls with the square root of warmup_epochs; set these to at least 1")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr:g}) must not exceed lr ({self.lr:g})")
        return self


class VariantSection(Section):
    """One entry of ``compare:``; what it names replaces the recipe's `surgery` and keys of its `model` and `train`.

    A variant with a `model` of its own starts from that model's own weights, drawn from the same seed.
    """

    model: dict[str, Any] = Field(default_factory=dict)
    surgery: list[Any] | None = None
    train: dict[str, Any] = Field(default_factory=dict)


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
    surgery: list[Any] = Field(default_factory=list)
    keep_originals: bool = True
    train: TrainSection | None = None
    compare: dict[Name, VariantSection] = Field(default_factory=dict)
    analysis: list[Any] = Field(default_factory=list)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.data is None and (self.train or self.pretrain):
            raise ValueError("data is required where there is train or pretrain")
        taken = [name for name in self.compare if name.lower() in TAKEN]
        if taken:
            raise ValueError(f"compare.{taken[0]}: a run writes its own file or folder of this name; use another")
        if self.train is None and any(variant.train for variant in self.compare.values()):
            raise ValueError("compare overrides train, but there is no train section to start from")
        self._check_own_models({name: variant.model for name, variant in self.compare.items() if variant.model})
        return self

    def _check_own_models(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        for name, model in models.items():
            if self.pretrain is not None:
                raise ValueError(
                    f"compare.{name}.model: variants share the weights that pretrain trains, so they share the model; "
                    "take out pretrain or this model"
                )
            if model.get("yolo") is not None:
                raise ValueError(f"compare.{name}.model: a detector among classifiers; run it in a recipe of its own")

    @classmethod
    def train_section(cls) -> type[TrainSection] | type[DetectTrain]:
        """Return the class of `train` and `pretrain`."""
        return TrainSection

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
        return self.model_copy(update={**change, "surgery": [], "compare": {}, "analysis": []})

    def quick(self) -> RecipeFile:
        """Return this recipe cut down to a trial: at most 3 epochs before the surgery and 2 after, 2,048 images.

        Example:
            >>> import recipes
            >>> recipes.load("digits_spd").quick().train.epochs
            2
        """
        content = self.model_dump()
        for key, epochs in (("pretrain", 3), ("train", 2)):
            if content[key]:
                content[key] = self.train_section().cut(content[key], epochs)
        for entry in content["compare"].values():
            entry["train"] = self.train_section().cut(entry["train"], 2) if entry["train"] else {}
        if content["data"]:
            content["data"] |= self._few_images(content["data"])
        return type(self).model_validate(content)

    def _few_images(self, data: Mapping[str, Any]) -> dict[str, Any]:
        limits = {"max_train": 2048, "max_val": 512}
        return {key: min(data[key] or limit, limit) for key, limit in limits.items()}

    def model_of(self, change: Mapping[str, Any]) -> ModelSection:
        """Return the recipe's `model` with the keys that an entry of `compare` names."""
        return ModelSection.model_validate(changed_model(self.model.model_dump(), change)) if change else self.model

    def _variant(self, name: str, entry: VariantSection) -> RecipeFile:
        surgery = self.surgery if entry.surgery is None else entry.surgery
        train = self.train and self.train_section().model_validate({**self.train.model_dump(), **entry.train})
        change: dict[str, Any] = {
            "name": f"{self.name}.{name}",
            "model": self.model_of(entry.model),
            "surgery": surgery,
            "train": train,
            "compare": {},
            "pretrain": None,
        }
        return self.model_copy(update=change)


class DetectorRecipe(RecipeFile):
    """A recipe whose model is a detector (``model: {yolo: ...}``): data and training are in ultralytics' words."""

    data: DetectionData | None = None  # type: ignore[assignment]
    pretrain: DetectTrain | None = None  # type: ignore[assignment]
    train: DetectTrain | None = None  # type: ignore[assignment]

    def _check_own_models(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        for name in models:
            raise ValueError(
                f"compare.{name}.model: the variants of a detector start from one file of weights, so they share the "
                "model; take it out, and run a recipe of its own for each model"
            )

    @classmethod
    def train_section(cls) -> type[DetectTrain]:
        """Return the class of `train` and `pretrain`."""
        return DetectTrain

    def _few_images(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Of a data yaml ultralytics takes few itself: see `DetectTrain.cut`."""
        limits = {"images": 64, "val_images": 32}
        return {key: min(data[key], limit) for key, limit in limits.items() if key in data}


def recipe_class(document: Any) -> type[RecipeFile]:
    """Return the class that reads a recipe: what ``model:`` names decides.

    Example:
        >>> recipe_class({"model": {"yolo": "yolo11n.yaml"}}).__name__
        'DetectorRecipe'
    """
    model = document.get("model") if isinstance(document, Mapping) else None
    return DetectorRecipe if isinstance(model, Mapping) and model.get("yolo") is not None else RecipeFile
