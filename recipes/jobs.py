"""Analyses one after another, as commands do them: into a folder, each with a ledger, kept where Ctrl-C ends one.

Apart from the commands, which say what is to be done.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from analysis import Result
    from recipes.processes import Processes
    from recipes.viewing import Viewed


@contextmanager
def at_work(
    model: str, out: Path, names: Iterable[str], device: str, resume: bool, **opened: Any
) -> Iterator[tuple[Processes, Viewed]]:
    """Open a model in every process, on its device, once the folder is known to take results.

    Args:
        model: As users name it.
        out: Folder of the results.
        names: Of the analyses, as of :func:`prepare`.
        device: As ``--device`` gives it.
        resume: Likewise.
        opened: How the model is opened.
    """
    from recipes.processes import processes
    from recipes.viewing import view_model

    with processes(device) as who:
        viewed = view_model(model, **opened)
        if who.main:
            prepare(out, resume, names)
        who.wait()
        viewed.model.to(who.device)
        yield who, viewed


def run_jobs(jobs: dict[str, Any], out: Path, main: bool) -> None:
    """Do one analysis after another, each with a ledger; write what there is, also after Ctrl-C."""
    from analysis.pages import write_report
    from recipes.analyze_cli import write_result

    results: list[Result] = []
    for name, job in jobs.items():
        result: Any = job(ledger=out / f"{name}.ledger")
        results.append(result)
        if main:
            write_result(result, out, name, page=False)
            write_report(results, out / "report.html")
        if not result.settings.get("complete", True):
            if main:
                typer.echo(f"stopped; what was measured is in {out}, run the same command again to go on", err=True)
            raise KeyboardInterrupt
    if main:
        for ledger in [file for name in jobs for file in out.glob(f"{name}.ledger*")]:  # not before all is done
            ledger.unlink(missing_ok=True)
        typer.echo(f"written to {out}: {', '.join(jobs)} (.json .csv .png), report.html")


def command_line() -> str:
    """What was typed, as a report repeats it."""
    return shlex.join(["surgeon", *sys.argv[1:]])


def prepare(out: Path, resume: bool, names: Iterable[str]) -> None:
    """See that a folder can be written to, and forget what it holds of these analyses, unless they go on."""
    from recipes.analyze_cli import try_folder

    try_folder(out)
    if not resume:
        for ledger in [file for name in names for file in out.glob(f"{name}.ledger*") if file.is_file()]:
            ledger.unlink(missing_ok=True)
