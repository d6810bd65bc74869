"""What an attack leaves: counts of images, their rows with intervals, and the figure.

Apart from `attacking`, which counts.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.attack_settings import Settings
from analysis.intervals import wilson
from analysis.result import Result, Row

CLEAN = "clean"


@dataclass
class Count:
    """Images of one repeat: all, right per attack (and "clean"), and right when clean but wrong when attacked."""

    images: int = 0
    right: Counter[str] = field(default_factory=Counter)
    turned: Counter[str] = field(default_factory=Counter)


class Adversarial(Result):
    """Accuracy on clean and on attacked images; ``rows``: one for "clean", then one per attack.

    ``accuracy`` is the mean over repeats, with Wilson's 95% interval for other images like these;
    ``sd_over_repeats`` says how far the network's own randomness moves it. ``success_rate`` is the share of the images
    right when clean that the attack turned. ``settings`` holds all that was asked for.
    """

    def figure(self) -> Figure:
        """Draw accuracy per attack with its interval."""
        figure = Figure(figsize=(1.6 + 1.1 * len(self.rows), 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        right, ends = [100 * row["accuracy"] for row in self.rows], ("accuracy_low_95", "accuracy_high_95")
        far = [[100 * abs(row[end] - row["accuracy"]) for row in self.rows] for end in ends]
        colours = ["#999999" if row["attack"] == CLEAN else "#0072B2" for row in self.rows]
        axis.bar(range(len(right)), right, yerr=far, color=colours, ecolor="#333333", capsize=4, width=0.6)
        axis.set_xticks(range(len(right)), [_named(row) for row in self.rows])
        axis.set(ylim=(0, 105), ylabel="images right (%)")
        axis.set_title(self.title, fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
        return figure


def rows_of(counts: Sequence[Count], settings: Settings) -> list[Row]:
    """One row for clean images, one per attack; accuracies are means over repeats."""
    return [_row(name, counts, settings) for name in (CLEAN, *settings.attacks)]


def _row(name: str, counts: Sequence[Count], settings: Settings) -> Row:
    strength, images = settings.strength, counts[0].images
    shares = [count.right[name] / count.images for count in counts]
    accuracy, clean = statistics.fmean(shares), sum(count.right[CLEAN] for count in counts)
    low, high = wilson(round(accuracy * images), images)
    how: dict[str, tuple[float, int, float | None, int | None]] = {
        CLEAN: (0.0, 0, None, None),
        "fgsm": (strength.epsilon, 1, strength.epsilon, strength.eot),
        "pgd": (strength.epsilon, strength.steps, strength.step_size, strength.eot),
    }
    turned = sum(count.turned[name] for count in counts)
    return {
        "attack": name,
        **dict(zip(("epsilon", "steps", "step_size", "eot"), how[name], strict=True)),
        "images": images,
        "repeats": len(counts),
        "accuracy": accuracy,
        "accuracy_low_95": low,
        "accuracy_high_95": high,
        "sd_over_repeats": statistics.stdev(shares) if len(shares) > 1 else None,
        "success_rate": turned / clean if clean and name != CLEAN else None,
    }


def summary_of(rows: Sequence[Row], settings: Settings) -> str:
    """The accuracies in one sentence."""
    parts = [f"{_plain_name(row)} {row['accuracy']:.1%}" for row in rows]
    times = f", mean of {rows[0]['repeats']} repeats" if rows[0]["repeats"] > 1 else ""
    by_name = {row["attack"]: row["accuracy"] for row in rows}
    words = f"right of {rows[0]['images']} images{times}: {', '.join(parts)}"
    if by_name.get("pgd", 0.0) > by_name.get("fgsm", 1.0):
        words += ". PGD finds less than one step of FGSM: more steps, or more eot if the network draws, would find more"
    return f"epsilon {_grey(settings)}; {words}"


def _grey(settings: Settings) -> str:
    if settings.norm == "L2":
        return f"{settings.epsilon:.3g} (L2)"
    return f"{255 * settings.epsilon:.3g}/255" if tuple(settings.bounds) == (0, 1) else f"{settings.epsilon:.3g}"


def _plain_name(row: Row) -> str:
    name, *details = _named(row).split("\n")
    return f"{name} ({', '.join(details)})" if details else name


def _named(row: Row) -> str:
    if row["attack"] == CLEAN:
        return CLEAN
    details = [f"{row['steps']} steps"] if row["steps"] > 1 else []
    details += [f"mean of {row['eot']} gradients"] if row["eot"] > 1 else []
    return "\n".join([str(row["attack"]).upper(), *details])
