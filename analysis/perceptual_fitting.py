"""Learning the weights of a perceptual distance from scores that people gave.

Apart from the distance: the network is looked at once per image; what weights act on is one number per channel and
pair, and is kept, so that an epoch costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from analysis.opening import versions_of
from analysis.perceptual_distance import PerceptualDistance
from analysis.perceptual_result import PerceptualFit
from analysis.perceptual_seen import Seen, parts
from analysis.perceptual_settings import check_fitting, parted
from analysis.perturb import untouched
from analysis.ratings import Ratings
from analysis.result import Row
from analysis.study_settings import size_in_bytes
from surgeon.errors import AnalysisError

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


def fit_perceptual(
    distance: PerceptualDistance,
    data: Ratings,
    *,
    validation: Ratings | float | None = None,
    epochs: int = 200,
    batch_size: int = 32,
    opt: str | MakeOptimizer = "adam",
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    dropout: float = 0.0,
    patience: int | None = 25,
    image_batch: int = 16,
    memory: int | str = "1GiB",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
    command: str = "",
) -> PerceptualFit:
    """Learn the weights of a distance, in place, so that distances follow scores: the loss is minus their correlation.

    Pearson's correlation is taken within each batch, of distances with scores turned so that more is worse
    (:class:`Ratings` says which way they go). With a validation set the weights of its best epoch stay, epoch 0 (as
    they were) among them; without one those of the last epoch.

    Args:
        distance: Whose weights learn; its network does not.
        data: Scored pairs; those of an image with itself are left out.
        validation: Other scored pairs, of other references (by their names); or the share of references of ``data``
            kept for that.
        epochs: At most so many.
        batch_size: Pairs per step; the last batch of an epoch is no smaller than the others by more than one.
        opt: Name of an optimiser, as timm knows them, or a function from a list of parameters to one.
        lr: Learning rate, where ``opt`` is a name.
        weight_decay: Likewise; of the raw parameter, not of the weights.
        dropout: Share of channels left out at random in each step, as LPIPS does (0.5).
        patience: Stop after so many epochs without a better validation; None never.
        image_batch: Images that go through the network at once.
        memory: Keep what the weights act on up to this size; what does not fit is computed anew in each epoch.
        limit: Use the first pairs only.
        seed: Of the order of pairs, of dropout and of the split.
        progress: Show a bar.
        command: As reports name it.

    Returns:
        One row per epoch, epoch 0 first. ``distance.made`` says how its weights came about, and is saved with them.

    Raises:
        AnalysisError: When data or a setting is none, scores or distances do not vary, or a distance is no finite
            number. The weights are then as they were.

    Example:
        >>> import timm
        >>> from analysis.distorting import distorted_samples
        >>> distance = PerceptualDistance(timm.create_model("test_resnet"), form="gap")
        >>> found = fit_perceptual(distance, distorted_samples(images=4, channels=3), epochs=3)
        >>> found.rows[-1]["pearson"] > found.rows[0]["pearson"], bool(distance.weights.min() >= 0)
        (True, True)

    References:
        Parameter-Efficient Architectural Modifications for Translation-Invariant CNNs, arXiv:2604.27870: the released
        code trains on TID2008 for up to 1,500 epochs of Adam (1e-3), 32 pairs a batch, loss Pearson's correlation with
        mean opinion scores. Deviation: it takes the best epoch by the mean correlation of validation batches, here it
        is that of all validation pairs.
    """
    if not isinstance(distance, PerceptualDistance):
        raise AnalysisError(f"fit_perceptual: a {type(distance).__name__} has no weights; give a PerceptualDistance")
    check_fitting(epochs, batch_size, dropout, patience, image_batch, limit, seed)
    train, held = parted(data, validation, limit, seed)
    with untouched(distance.backbone):
        learned = Seen(distance, train, size_in_bytes(memory), image_batch, progress)
        kept = (
            None if held is None else Seen(distance, held, size_in_bytes(memory) - learned.bytes, image_batch, progress)
        )
        with torch.enable_grad():
            torch.manual_seed(seed)
            optimizer = _optimizer(distance, opt, lr, weight_decay)
            how = _How(epochs, batch_size, dropout, patience, progress)
            rows, complete = _epochs(distance, learned, kept, optimizer, how)
    name = opt if isinstance(opt, str) else type(optimizer).__name__
    asked = {"epochs": epochs, "batch_size": batch_size, "opt": name, "lr": lr, "weight_decay": weight_decay}
    asked |= {"dropout": dropout, "patience": patience, "limit": limit, "seed": seed, "complete": complete}
    about = {"data": train.name, "pairs": len(train), "references": len(train.references), "higher": train.higher}
    about |= {"validation": None if held is None else f"{held.name}, {len(held)} pairs"}
    best = next(row for row in rows if row["best"])
    distance.made = {**about, **asked, **{key: best[key] for key in ("epoch", "pearson", "validation_pearson")}}
    plain = {"model": type(distance.backbone).__name__, "form": distance.form, "weights": distance.channels, **about}
    settings = {**plain, **asked, "command": command, "versions": versions_of()}
    return PerceptualFit(f"Learning {distance.channels} weights on {train.name}", rows, _summary(rows, best), settings)


@dataclass(frozen=True)
class _How:
    epochs: int
    size: int
    dropout: float
    patience: int | None
    shown: bool


def _epochs(
    distance: PerceptualDistance, learned: Seen, held: Seen | None, optimizer: Optimizer, how: _How
) -> tuple[list[Row], bool]:
    """Train; the best weights stay, and after an error those there were before."""
    rows: list[Row] = []
    best, complete = _Best(distance, held is not None), True
    before = best.raw
    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not (how.shown and console.is_terminal), transient=True) as bar:
            task = bar.add_task("learning", total=how.epochs)
            for epoch in range(how.epochs + 1):
                loss = _epoch(distance, learned, optimizer, how) if epoch else None
                row = {"epoch": epoch, "loss": loss, "pearson": learned.pearson()}
                row["validation_pearson"] = None if held is None else held.pearson()
                _refuse_flat(row, held is not None)
                rows.append({**row, "best": False})
                if best.since(row) >= (how.patience or math.inf):
                    break
                bar.update(task, completed=epoch)
    except KeyboardInterrupt:
        if not rows:
            raise
        complete = False
    except BaseException:
        best.raw = before
        raise
    finally:
        best.put_back(distance)
    rows[min(best.epoch, len(rows) - 1)]["best"] = True
    return rows, complete


def _refuse_flat(row: Row, judged: bool) -> None:
    """An epoch 0 without a correlation tells that the network sees all pairs alike."""
    for role, key in (("data", "pearson"), ("validation", "validation_pearson")):
        if row["epoch"] == 0 and row[key] is None and (judged or role == "data"):
            raise AnalysisError(
                f"fit_perceptual: {role}: the distance is the same for all pairs, so no weights can follow the scores; "
                "give other pairs, or taps that see them"
            )


class _Best:
    """The best weights so far; the latest without a validation set."""

    def __init__(self, distance: PerceptualDistance, judged: bool) -> None:
        self.distance, self.judged = distance, judged
        self.raw, self.value, self.epoch = distance.raw.detach().clone(), -math.inf, 0

    def since(self, row: Row) -> int:
        """Take note of an epoch; how many have gone by since the best."""
        value = row["validation_pearson"] if row["validation_pearson"] is not None else -math.inf
        if not self.judged or value > self.value:
            self.raw, self.value, self.epoch = self.distance.raw.detach().clone(), value, row["epoch"]
        return int(row["epoch"] - self.epoch)

    def put_back(self, distance: PerceptualDistance) -> None:
        with torch.no_grad():
            distance.raw.copy_(self.raw)
        distance.raw.grad = None


def _epoch(distance: PerceptualDistance, learned: Seen, optimizer: Optimizer, how: _How) -> float:
    """One pass over all pairs in a new order; the mean loss."""
    losses = []
    for part in parts(torch.randperm(len(learned.data)).tolist(), how.size):
        rows = functional.dropout(learned.of(part), how.dropout)
        loss = -pearson(distance.combine(rows), learned.worse[part])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of two rows of numbers, with a gradient; 0 where one of them does not vary.

    Example:
        >>> round(float(pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))), 5)
        1.0
    """
    x, y = x - x.mean(), y - y.mean()
    lengths = torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y)
    found: Tensor = (x * y).sum() / lengths.clamp_min(1e-12)
    return found


def _optimizer(distance: PerceptualDistance, opt: str | MakeOptimizer, lr: float, weight_decay: float) -> Optimizer:
    if callable(opt):
        made = opt([distance.raw])
        if not isinstance(made, Optimizer):
            raise AnalysisError(f"fit_perceptual: opt made a {type(made).__name__}; it must make an optimiser of torch")
        return _stepping(made)
    from timm.optim import create_optimizer_v2

    try:
        found: Optimizer = create_optimizer_v2([distance.raw], opt=opt, lr=lr, weight_decay=weight_decay)
    except (ValueError, AssertionError, TypeError) as error:
        raise AnalysisError(f"fit_perceptual: opt={opt!r}: {error}; give a name that timm.optim knows") from error
    return _stepping(found)


def _stepping(optimizer: Optimizer) -> Optimizer:
    """Refuse one whose step asks for the loss again, such as LBFGS: there is one gradient per step here."""
    closure = signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is Parameter.empty:
        raise AnalysisError(
            f"fit_perceptual: {type(optimizer).__name__} needs a closure for each step, which is not given here; "
            "choose another optimiser, as opt='adam'"
        )
    return optimizer


def _summary(rows: Sequence[Row], best: Row) -> str:
    first = rows[0]
    told = [f"Pearson {_number(first['pearson'])} before, {_number(best['pearson'])} after {best['epoch']} epochs"]
    if best["validation_pearson"] is not None:
        told.append(f"validation {_number(first['validation_pearson'])}, then {_number(best['validation_pearson'])}")
    return "; ".join(told)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
