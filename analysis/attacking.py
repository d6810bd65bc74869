"""How many images a classifier still gets right when somebody changes their pixels a little, and on purpose.

Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996, Table 2, put networks with random
layers to this test. How one batch is attacked lies in `attacks`, what may be asked for in `attack_settings`, what comes
of it in `attack_result`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from analysis.attack_result import CLEAN, Count, rows_of, summary_of
from analysis.attack_result import Adversarial as Adversarial
from analysis.attack_settings import Scale, Settings, scale
from analysis.attacks import Batch, Loss, Norm, attack, captum_robust, cross_entropy, logits_of
from analysis.model_names import model_name
from analysis.perturb import uninterrupted, untouched
from surgeon.errors import AnalysisError
from surgeon.host import host_of

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def adversarial(
    model: nn.Module,
    data: Iterable[Any],
    *,
    attacks: Sequence[str] = ("fgsm", "pgd"),
    epsilon: float = 8 / 255,
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    eot: int = 1,
    repeats: int = 1,
    norm: Norm = "Linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    max_images: int | None = None,
) -> Adversarial:
    """Measure how many images a classifier gets right, clean and attacked by FGSM and PGD (of captum).

    Epsilon, step size and bounds are in pixels as they were before ``data`` was normalised: 8/255 is eight grey levels
    whatever mean and std. A network with random layers draws once per forward pass, so once for a whole batch: the mean
    over images is right, but batch mates share their luck, so take small batches or several ``repeats``; Wilson's
    interval does not know of that, ``sd_over_repeats`` does. Against such a network a step that follows one draw's
    gradient is weak; ``eot`` averages over several draws. The model and all generators are put back bit for bit.

    Args:
        model: Answers logits (N, classes); attacked in evaluation mode.
        data: Batches of (images, classes), normalised; read anew for each repeat.
        attacks: "fgsm", "pgd" or both.
        epsilon: Largest change of a pixel (Linf), or length of the change of an image (L2).
        steps: Of PGD.
        step_size: Of PGD; 2.5 * epsilon / steps where none is given.
        random_start: Whether PGD starts at a random place within epsilon.
        eot: Forward passes whose gradients are averaged in each step (expectation over transformation).
        repeats: How often everything is done, with other random numbers.
        norm: "Linf" or, for PGD alone, "L2".
        bounds: Darkest and brightest pixel.
        mean: The data were normalised with, per channel; of the model's ``pretrained_cfg`` by default, else 0.
        std: As mean; else 1.
        seed: Of random starts; a network's own random layers go on from where they stand.
        loss: Of (logits, classes), for each image or as one number; cross-entropy by default, in a form whose gradient
            a confident network does not round to zero (`attacks.cross_entropy`).
        max_images: Use the first images only.

    Raises:
        AnalysisError: When captum is missing, the model is no classifier, a setting has no such value, the data are
            none, or their pixels are not within bounds.

    Example:
        >>> model, image = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(4, 3, 2, 2)
        >>> found = adversarial(model, [(image, model(image).argmax(1))], epsilon=0.5, steps=3)
        >>> [row["attack"] for row in found.rows], found.rows[0]["accuracy"]
        (['clean', 'fgsm', 'pgd'], 1.0)

    References:
        Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996, Table 2.
        Deviation: the paper names no epsilon, step size, steps or start; these are Madry et al.'s for CIFAR-10, but
        for the step size, which is 2.5 * epsilon / steps.
    """
    asked = (epsilon, steps, step_size, random_start, eot, repeats, norm, bounds, seed, max_images)
    settings = Settings((attacks,) if isinstance(attacks, str) else tuple(attacks), *asked)
    _check(model, data)
    captum_robust()
    scaled = scale(model, mean, std)
    with untouched(model), _fixed(model), torch.inference_mode(False), torch.enable_grad():
        counted = list(_repeats(model, data, settings, scaled, loss or cross_entropy))
    name = "cross_entropy" if loss is None else getattr(loss, "__name__", type(loss).__name__)
    return _result(model, counted, settings, scaled, name)


def _check(model: Any, data: Any) -> None:
    if not isinstance(model, nn.Module) or host_of(model) is not None:
        raise AnalysisError(
            f"adversarial attacks a classifier, a module that answers logits (N, classes), found "
            f"{type(model).__name__}; detectors are not attacked"
        )
    if not isinstance(data, Iterable) or isinstance(data, Tensor):
        raise AnalysisError(
            f"adversarial: data is a {type(data).__name__}; pass batches of (images, classes), a DataLoader or a list"
        )
    if isinstance(data, Iterator):
        raise AnalysisError("adversarial: data can be read once only; pass a list of its batches, or a DataLoader")


@contextmanager
def _fixed(model: nn.Module) -> Iterator[None]:
    """No parameter gets a gradient: only that of the image is needed."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        with uninterrupted():
            for parameter in learning:
                parameter.requires_grad_(True)


def _repeats(model: nn.Module, data: Iterable[Any], settings: Settings, scaled: Scale, loss: Loss) -> Iterator[Count]:
    """Everything once per repeat, each with its own random numbers."""
    console = Console(stderr=True)
    batches = len(data) if isinstance(data, Sized) and settings.max_images is None else None
    total = None if batches is None else batches * settings.repeats * (1 + len(settings.attacks))
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("attacking", total=total)
        for repeat in range(settings.repeats):
            count = Count()
            _seed(settings.seed, repeat)
            for index, (images, targets) in enumerate(_batches(model, data, settings.max_images)):
                pixels, std = scaled.pixels(images, settings.bounds)
                batch = Batch(images, pixels, targets, std)
                clean = _right(model, images, targets)
                _tally(count, CLEAN, clean, clean)
                progress.advance(task)
                for name in settings.attacks:
                    _seed(settings.seed, repeat, index, name)
                    changed = attack(model, batch, name, settings.strength, loss)
                    _tally(count, name, _right(model, batch.normalised(changed), targets), clean)
                    progress.advance(task)
            yield count


def _tally(count: Count, name: str, right: Tensor, clean: Tensor) -> None:
    count.images += len(clean) if name == CLEAN else 0
    count.right[name] += int(right.sum())
    count.turned[name] += int((clean & ~right).sum())


def _right(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Which images of a batch get their class, (N,)."""
    with torch.no_grad():
        logits = logits_of(model, images)
    if int(targets.max()) >= logits.shape[1]:
        raise AnalysisError(
            f"adversarial: class {int(targets.max())} is among the targets, but {type(model).__name__} has "
            f"{logits.shape[1]} classes; pass the data it was trained for"
        )
    return logits.argmax(1) == targets


def _batches(model: nn.Module, data: Iterable[Any], most: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of floating-point images and whole-number classes, where the model is; at most ``most`` images."""
    device = next((p.device for p in model.parameters()), None)
    seen = 0
    for batch in data:
        images, targets = _pair(batch)
        left = len(images) if most is None else most - seen
        images, targets = (t[:left].to(device or images.device) for t in (images, targets))
        images, targets = (t.clone() if t.is_inference() else t for t in (images, targets))  # autograd keeps no such
        seen += len(images)
        if len(images):
            yield images, targets
        if seen == most:
            break
    if not seen:
        raise AnalysisError("adversarial got no image; pass batches of (images, classes)")


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        images, targets = batch
        if _images(images) and _classes(targets) and len(images) == len(targets):
            return images, targets.long()
    several = batch if isinstance(batch, (tuple, list)) else [batch]
    found = ", ".join(f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__ for t in several)
    raise AnalysisError(
        f"adversarial got a batch of {found}; pass batches of (images, classes): normalised images (N, C, H, W) and "
        "class numbers (N,) from 0 up"
    )


def _images(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


def _classes(value: Any) -> bool:
    whole = isinstance(value, Tensor) and value.ndim == 1 and value.dtype in WHOLE
    return whole and not (len(value) and int(value.min()) < 0)


def _seed(*parts: Any) -> None:
    """Set every generator; the numbers of one attack do not depend on which others are asked for."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> 1
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def _result(model: nn.Module, counts: list[Count], settings: Settings, scaled: Scale, loss: str) -> Adversarial:
    rows = rows_of(counts, settings)
    about = {"model": model_name(model), **settings.plain(), "mean": list(scaled.mean), "std": list(scaled.std)}
    versions = {name: version(name) for name in ("torch", "captum")}
    used = {"step_size": settings.strength.step_size, "images": rows[0]["images"], "loss": loss}
    title = f"{type(model).__name__} under attack"
    return Adversarial(title, rows, summary_of(rows, settings), {**about, **used, "versions": versions})
