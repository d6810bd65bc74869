"""What the runs of classifiers and of detectors share: recipe, folder, who is at work, and where they speak."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

import surgeon
from recipes.folders import write_text
from recipes.processes import Processes
from recipes.schema import RecipeFile


@dataclass
class Steps:
    """One run under way; `running` calls its steps in order.

    Attributes:
        recipe: Of the run.
        folder: Of its results.
        who: This process.
        console: Where it speaks.
        findings: Of its analyses, a line each.
    """

    recipe: RecipeFile
    folder: Path
    who: Processes
    console: Console
    findings: list[str] = field(default_factory=list)

    @property
    def device(self) -> str:
        """Where nets are trained."""
        return str(self.who.device)

    def say(self, text: str) -> None:
        """Speak, in the main process only."""
        if self.who.main:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def keep_record(self, name: str, model: Any, place: Path) -> bool:
        """Write the table of changes and say it; whether there is any."""
        record = surgeon.record(model)
        write_text(place / "record.json", record.to_json() + "\n")
        write_text(place / "record.txt", f"{record}\n")
        if record.changes:
            self.say(f"\n{name}: the table of changes\n{record}")
        return bool(record.changes)

    def keep_verification(self, name: str, verification: Any, place: Path) -> None:
        """Write how the operated model answers on real images, and say it."""
        write_text(place / "verification.txt", f"{verification}\n")
        self.say(f"\n{name}: before and after the surgery, on validation images\n{verification}\n")


def ops_in(model: Any) -> str:
    """Name the ops a model was operated by."""
    return ", ".join(dict.fromkeys(change.op for change in surgeon.record(model).changes)) or "none"
