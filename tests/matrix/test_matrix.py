"""Every family of timm, and torchvision's best known: what ``locate`` lists is proved, counted and compared.

The counts stand in ``expected.json`` (one small model of each family, with what ``spd`` decides; those of the most
used families on every push, the others by marker ``matrix``) and, for every name, in ``expected_all.json`` (marker
``matrix``). Any change, better or worse, fails until somebody has looked at it and run
``pytest -m '' --update-matrix tests/matrix``.
"""

import json
from pathlib import Path

import pytest

from tests.contracts import TOLERANCE
from tests.matrix.checking import Check
from tests.matrix.coverage import PAGE, exact_rows, exactness, page
from tests.matrix.measure import (
    TORCHVISION,
    Book,
    Row,
    compare,
    families,
    measure,
    measure_sites,
    smallest,
    timm_names,
    versions,
)
from tests.zoo import FAMILIES

HERE = Path(__file__).parent
PLAIN = ("resnet18", "googlenet", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "swin_t")
PLAIN = tuple(f"{TORCHVISION}{name}" for name in (*PLAIN, "shufflenet_v2_x0_5"))
BOOK = Book.read(HERE / "expected.json")
NAMES = [name for name in BOOK.rows if not name.startswith(TORCHVISION)]
USED = {name for names in families().values() for name in names if {entry.name for entry in FAMILIES} & set(names)}


@pytest.mark.parametrize(
    "name", [name if name in USED else pytest.param(name, marks=pytest.mark.matrix) for name in NAMES]
)
def test_family(name: str, check: Check) -> None:
    found = measure(name)
    assert found.differences == []
    check(name, found.row)


@pytest.mark.parametrize("name", PLAIN)
def test_torchvision(name: str, check: Check) -> None:
    found = measure(name, 224)
    assert found.differences == []
    check(name, found.row)


def test_every_family_has_a_model(check: Check, request: pytest.FixtureRequest) -> None:
    absent = {family: names for family, names in families().items() if not set(names) & set(NAMES)}
    if request.config.getoption("update_matrix"):
        for names in absent.values():
            check(smallest(names), measure(smallest(names)).row)
    else:
        assert absent == {}, "timm has families the matrix does not know: pytest -m '' --update-matrix tests/matrix"
        assert len(NAMES) == len(families())


@pytest.mark.matrix
@pytest.mark.parametrize("name", timm_names())
def test_name(name: str, check_all: Check) -> None:
    found = measure_sites(name)
    assert found.differences == []
    check_all(name, found.row)


@pytest.mark.matrix
def test_no_name_is_left_over(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("update_matrix"):
        pytest.skip("the file is being written")
    assert sorted(Book.read(HERE / "expected_all.json").rows) == timm_names()


def strided(row: Row) -> int:
    return sum(n for kind, n in row["kinds"].items() if kind.startswith(("strided_conv", "strided_pool")))


def total(rows: list[Row]) -> tuple[int, int, int]:
    """Sites ``spd`` rewrites, leaves because they are the same already, refuses."""
    parts = [row["spd"] for row in rows]
    refused = sum(sum(part["refused"].values()) for part in parts)
    return sum(part["rewritten"] for part in parts), sum(part["unchanged"] for part in parts), refused


def share(rows: list[Row]) -> float:
    """Of the strided convs and pools that are no space-to-depth already, how many ``spd`` rewrites."""
    rewritten, _, refused = total(rows)
    return rewritten / (rewritten + refused)


def test_spd_decides_every_strided_conv_and_pool() -> None:
    assert [name for name, row in BOOK.rows.items() if sum(total([row])) != strided(row)] == []


def test_spd_rewrites_at_least_95_percent() -> None:
    assert share([BOOK.rows[name] for name in NAMES]) >= 0.95


@pytest.mark.matrix
@pytest.mark.parametrize("name", NAMES)
def test_exact(name: str) -> None:
    assert exactness(name)["error"] < TOLERANCE


def test_the_page_of_coverage_is_up_to_date() -> None:
    assert sorted(exact_rows()) == sorted(NAMES)
    assert max(row["error"] for row in exact_rows().values()) < TOLERANCE
    assert PAGE.read_text(encoding="utf-8") == page(BOOK, exact_rows()), "python -m tests.matrix.coverage"


def test_share_counts_refusals_and_leaves_patchify_out() -> None:
    row = {"spd": {"rewritten": 9, "unchanged": 5, "refused": {"reason a": 2, "reason b": 1}}}
    assert share([row]) == 0.75
    assert total([row, row]) == (18, 10, 6)


def test_every_operation_of_the_second_list_has_a_class() -> None:
    unknown = {name: kind for name, row in BOOK.rows.items() for kind in row["others"] if kind.startswith("other")}
    assert unknown == {}, "look at it and name it in tests/surgeon/classes.py"


ROW = {"kinds": {"block": 8, "skip:function": 8}, "spd": {"rewritten": 3, "unchanged": 0, "refused": {}}}


def test_a_change_is_told_in_words(tmp_path: Path) -> None:
    book = Book(tmp_path / "expected.json", versions(), {"resnet": ROW})
    assert book.complaint("resnet", ROW) is None
    worse = {**ROW, "kinds": {"block": 7, "strided_conv": 1}}
    assert list(compare(ROW, worse)) == [
        "kinds.block: 8 -> 7",
        "kinds.skip:function: 8 -> absent",
        "kinds.strided_conv: absent -> 1",
    ]
    assert "kinds.block: 8 -> 7" in str(book.complaint("resnet", worse))
    assert "no such name" in str(book.complaint("vit", ROW))


def test_other_versions_are_told_first(tmp_path: Path) -> None:
    book = Book(tmp_path / "expected.json", {**versions(), "timm": "1.0.9"}, {"resnet": ROW})
    lines = str(book.complaint("resnet", {**ROW, "kinds": {}})).splitlines()
    assert lines[1].startswith("made with other versions: timm 1.0.9 -> ")


def test_the_book_is_written_by_line_and_read_back(tmp_path: Path) -> None:
    book = Book(tmp_path / "expected.json", {}, {"resnet": ROW, "gone": ROW})
    book.fresh["vit"] = {"kinds": {}}
    book.write({"resnet", "vit"})
    again = Book.read(book.path)
    assert again.rows == {"resnet": ROW, "vit": {"kinds": {}}}
    assert again.versions == versions()
    assert len(book.path.read_text(encoding="utf-8").splitlines()) == 5
    assert json.loads(book.path.read_text(encoding="utf-8"))["models"]["resnet"] == ROW
