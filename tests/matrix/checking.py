"""Compare rows with a book of expected ones; with ``--update-matrix`` they are written there instead."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.matrix.measure import Book, Row

Check = Callable[[str, Row], None]


def checker(path: Path, request: pytest.FixtureRequest, keep: Callable[[str], bool]) -> Iterator[Check]:
    """A function that fails where a row is not what the book says."""
    book, update = Book.read(path), request.config.getoption("update_matrix")

    def check(name: str, row: Row) -> None:
        if update:
            book.fresh[name] = row
        elif complaint := book.complaint(name, row):
            pytest.fail(complaint, pytrace=False)

    yield check
    if update and book.fresh:
        book.write({name for name in {*book.rows, *book.fresh} if keep(name)})
