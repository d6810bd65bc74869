"""The books of expected rows of timm; with ``--update-matrix`` they are rewritten instead of compared."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.matrix.checking import Check, checker
from tests.matrix.measure import timm_names

HERE = Path(__file__).parent


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
