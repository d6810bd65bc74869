"""The command ``surgeon report``: the results below a folder, joined into one page.

Apart from the other commands because it reads what they have written, and runs no net.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from analysis.stored import StoredResult

REPORT = "surgeon report runs/digits_spd | surgeon report runs --out all.html --title 'Three seeds'"
LARGEST = 64_000_000  # bytes; a result has thousands of rows at most, data sets have larger files


def report(
    folder: Annotated[Path, typer.Argument(help="Where results lie: every JSON file below it is looked at.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file. Default: report.html in that folder.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
) -> None:
    """Join all results below a folder into one HTML page.

    Figures, tables, settings, and the commands that made them; the same analysis of several seeds gets a heatmap of the
    mean. The page needs no other file and no network.
    """
    from analysis.pages import write_report
    from surgeon.errors import SurgeonError

    if not folder.is_dir():
        what = "is a file; name the folder it lies in" if folder.is_file() else "is not there; name a folder of results"
        raise SurgeonError(f"{folder} {what}")
    results, troubles, seen = collect(folder)
    for trouble in troubles:
        typer.echo(f"surgeon: left out: {trouble}", err=True)
    if not results:
        raise SurgeonError(
            f"no result in {folder}: {seen} JSON file{'' if seen == 1 else 's'} below it, none can be read and has "
            "title, summary and rows as analyses write them; name a folder of surgeon run or surgeon analyze"
        )
    name = title if title is not None or len(results) == 1 else f"Results of {folder.resolve().name}"
    page = write_report(results, out or folder / "report.html", name, [f"Left out: {trouble}." for trouble in troubles])
    left = f", {len(troubles)} left out" if troubles else ""
    typer.echo(
        f"{page}: {len(results)} result{'' if len(results) == 1 else 's'}{left} ({page.stat().st_size / 1000:.0f} kB)"
    )


def collect(folder: Path) -> tuple[list[StoredResult], list[str], int]:
    """Read every result below a folder.

    Returns:
        The results by path (``seed_2`` before ``seed_10``), what could not be read and why, and how many JSON files
        there are. A JSON file that is whole but no result (a summary, a record of changes) is passed over.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     collect(Path(place))
        ([], [], 0)
    """
    from analysis.stored import as_result, looks_like_result, read_json
    from surgeon.errors import AnalysisError

    found, troubles = [], []
    files = sorted((file for file in folder.rglob("*.json") if file.is_file()), key=_natural)
    for file in files:
        try:
            if file.stat().st_size > LARGEST:
                continue
            content = read_json(file)
            if looks_like_result(content):
                found.append(as_result(content, str(file), file.relative_to(folder).as_posix()))
        except (AnalysisError, OSError) as error:
            troubles.append(str(error).partition(";")[0])
    return found, troubles, len(files)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.as_posix())]
