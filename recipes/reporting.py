"""What a training tells while it runs: JSON lines always, tensorboard on request, a progress bar for the terminal.

Apart from the loop so that a kill, a pipe instead of a terminal, or several processes change nothing in it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recipes.folders import write_text
from recipes.processes import Processes
from surgeon.errors import RecipeError

Row = dict[str, Any]
READ_EVERY = 0.2  # seconds


class Metrics:
    """``metrics.jsonl``: one line per epoch, rewritten from the checkpoint when a training is continued.

    Args:
        folder: Where to write; None writes nothing.
        rows: What an earlier run has already done.
        tensorboard: Write event files too.
    """

    def __init__(self, folder: Path | None, rows: list[Row], tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl" if folder else None
        if self.path:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.board = self._board(folder, rows) if tensorboard and folder else None

    @staticmethod
    def _board(folder: Path, rows: list[Row]) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RecipeError(
                "train.tensorboard needs the package tensorboard; run: pip install tensorboard, or set it to false"
            ) from None
        return SummaryWriter(str(folder / "tensorboard"), purge_step=len(rows))  # type: ignore[no-untyped-call]

    def add(self, row: Row) -> None:
        """Append one epoch."""
        if self.path:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        if self.board is not None:
            for key, value in row.items():
                if key != "epoch":
                    self.board.add_scalar(key, value, row["epoch"])
            self.board.flush()

    def close(self) -> None:
        """Close the event files."""
        if self.board is not None:
            self.board.close()


def in_words(row: Row) -> str:
    """Write the row of an epoch as a short line."""
    parts = [f"{key.replace('_', ' ')} {row[key]:.4f}" for key in ("train_loss", "val_loss") if key in row]
    parts += [f"{key.replace('_', ' ')} {row[key]:.2%}" for key in ("val_accuracy", "ema_accuracy") if key in row]
    return ", ".join(parts)


class Reporter:
    """A bar with loss, accuracy and remaining time in a terminal; elsewhere about ten lines per training.

    Args:
        title: What is trained.
        console: Where to write; a quiet one for silence.
        epochs: Of the whole training.
        done: Epochs already behind.
        num_batches: Per epoch.
        who: Only the main process writes.
    """

    def __init__(self, title: str, console: Console, epochs: int, done: int, num_batches: int, who: Processes) -> None:
        self.title, self.console, self.epochs, self.num_batches = title, console, epochs, num_batches
        self.speaks = who.main and not console.quiet
        self.live = self.speaks and console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}  {task.fields[words]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console, disable=not self.live)
        self.task = self.progress.add_task(
            title, total=epochs * num_batches, completed=done * num_batches, epoch=done, epochs=epochs, words=""
        )
        self.accuracy, self.words, self.read = "", "", 0.0

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def batch(self, epoch: int, totals: torch.Tensor) -> None:
        """Move the bar by one batch; the loss is read from the device a few times a second only."""
        if self.live and time.monotonic() - self.read > READ_EVERY:
            loss, _, images = totals.tolist()
            self.words, self.read = f"loss {loss / images:.3f}{self.accuracy}", time.monotonic()
        self.progress.update(self.task, advance=1, epoch=epoch, words=self.words)

    def epoch(self, row: Row) -> None:
        """Report a finished epoch."""
        self.accuracy = f"  accuracy {row['val_accuracy']:.2%}"
        self.words = f"loss {row['train_loss']:.3f}{self.accuracy}"
        self.progress.update(self.task, epoch=row["epoch"], words=self.words)
        every = max(1, self.epochs // 10)
        if not self.live and (row["epoch"] % every == 0 or row["epoch"] == self.epochs):
            self.say(f"{self.title}: epoch {row['epoch']}/{self.epochs}, {in_words(row)}")

    def say(self, text: str) -> None:
        """Write a line, above the bar where there is one."""
        if self.speaks:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
