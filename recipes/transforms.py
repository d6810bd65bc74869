"""How an image becomes a tensor: the settings of a model and a recipe put together, and the transforms made of them.

Separate from `data` because timm's and the small-image papers' pipelines are chosen here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from recipes.data_schema import ImageData
from surgeon.errors import RecipeError


def data_config(section: ImageData, model: Any, in_chans: int | None) -> dict[str, Any]:
    """Return input size (C, H, W), mean, std, interpolation and crop of a model, the section's own in front.

    Raises:
        RecipeError: When the model takes neither 1 nor 3 channels.
    """
    from timm.data import resolve_model_data_config
    from timm.data.loader import adapt_to_chs

    config = dict(resolve_model_data_config(model))
    channels = in_chans or config["input_size"][0]
    if channels not in (1, 3):
        raise RecipeError(f"the model takes {channels} channels, but images have 1 or 3; set model.in_chans")
    for key in ("mean", "std", "interpolation", "crop_pct"):
        if getattr(section, key) is not None:
            config[key] = getattr(section, key)
    config.update({key: adapt_to_chs(config[key], channels) for key in ("mean", "std")})
    return {**config, "input_size": (channels, *(section.size or config["input_size"][1:]))}


def make_transform(section: ImageData, config: dict[str, Any], training: bool) -> Callable[[Any], torch.Tensor]:
    """Return the transform of one image: the small-image pipeline where the section asks for it, else timm's."""
    return (_small_images if section.small else _timm)(section, config, training)


def _timm(section: ImageData, config: dict[str, Any], training: bool) -> Callable[[Any], torch.Tensor]:
    from timm.data import create_transform
    from torchvision import transforms

    channels, *size = config["input_size"]
    keys = ("no_aug", "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment")
    chosen = {key: getattr(section, key) for key in keys} if training else {}
    chosen.update({key: config[key] for key in ("mean", "std", "interpolation", "crop_pct")})
    erase = section.reprob if training else 0.0
    timm = create_transform(tuple(size), is_training=training, re_prob=erase, **chosen)
    return transforms.Compose([transforms.Grayscale(), timm]) if channels == 1 else timm  # type: ignore[no-any-return]


def _small_images(section: ImageData, config: dict[str, Any], training: bool) -> Callable[[Any], torch.Tensor]:
    """Pad, crop, flip and rotate, as the CIFAR and Tiny-ImageNet papers do; validation images are only resized."""
    from torchvision import transforms

    channels, *size = config["input_size"]
    steps: list[Any] = [transforms.Resize(tuple(size), transforms.InterpolationMode.BILINEAR)]
    if training:
        steps.append(transforms.RandomCrop(tuple(size), padding=section.crop_padding or None))
        steps += [transforms.RandomHorizontalFlip(section.hflip), transforms.RandomVerticalFlip(section.vflip)]
        steps += [transforms.RandomRotation(section.rotation)] if section.rotation else []
    steps += [transforms.Grayscale()] if channels == 1 else []
    steps += [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
    return transforms.Compose(steps)  # type: ignore[no-any-return]
