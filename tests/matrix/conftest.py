"""The books of expected rows; with ``--update-matrix`` they are rewritten instead of compared."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.matrix.measure import Book, Row, timm_names

HERE = Path(__file__).parent
Check = Callable[[str, Row], None]


def checker(path: Path, request: pytest.FixtureRequest, keep: Callable[[str], bool]) -> Iterator[Check]:
    book, update = Book.read(path), request.config.getoption("update_matrix")

    def check(name: str, row: Row) -> None:
        if update:
            book.fresh[name] = row
        elif complaint := book.complaint(name, row):
            pytest.fail(complaint, pytrace=False)

    yield check
    if update and book.fresh:
        book.write({name for name in {*book.rows, *book.fresh} if keep(name)})


@pytest.fixture(scope="session")
def check(request: pytest.FixtureRequest) -> Iterator[Check]:
    """Compare a row with ``expected.json``, or write it there."""
    names = set(timm_names())
    yield from checker(HERE / "expected.json", request, lambda name: "/" in name or name in names)


@pytest.fixture(scope="session")
def check_all(request: pytest.FixtureRequest) -> Iterator[Check]:
    """Compare a row with ``expected_all.json``, or write it there."""
    names = set(timm_names())
    yield from checker(HERE / "expected_all.json", request, lambda name: name in names)
