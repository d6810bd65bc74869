"""Pages and stored results: everything is on the page, escaped, small, without a network, the same bytes each time."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from matplotlib.figure import Figure

import analysis
from analysis import pages
from analysis.listing import MOST, listed
from analysis.pages import write_report
from analysis.result import Result
from analysis.seeds import by_seed, seed_of
from analysis.stored import StoredResult, read_result
from surgeon.errors import AnalysisError
from tests.analysis.rows import DEEP, TREATMENTS, joint, robustness, search

EVIL = "<script>alert(\"1\")</script> & 'ünï' $x_{$ ☃"


class Page(HTMLParser):
    """What a browser makes of a page: tags, their attributes, the text, and whether every element is closed."""

    VOID = ("meta", "img", "br", "path", "rect", "circle", "use")
    LOOSE = ("td", "th", "tr", "tbody", "thead")  # HTML closes them by itself

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in (*self.VOID, *self.LOOSE):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in (*self.VOID, *self.LOOSE):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page(results: list[Any], tmp_path: Path, **settings: Any) -> tuple[str, Page]:
    text = write_report(results, tmp_path / "page.html", **settings).read_text(encoding="utf-8")
    read = Page(text)
    assert read.open == []
    return text, read


# ----------------------------------------------------------------------------------------------- one result


def test_a_page_of_robustness_has_every_part(tmp_path: Path) -> None:
    result = robustness(
        notes={"layer2": "identity at initialisation"},
        command="surgeon analyze robustness 'my net' --draws 3",
        versions={"torch": "2.10.0", "timm": "1.0.31"},
    )
    text, read = page([result], tmp_path)
    for words in (
        result.title,
        result.summary,
        "Settings",
        "Table: 24 rows",
        "tolerance",
        "identity at initialisation",
    ):
        assert words in read.texts or any(words in said for said in read.texts)
    assert "surgeon analyze robustness 'my net' --draws 3" in read.texts
    assert any("with torch 2.10.0, timm 1.0.31" in said for said in read.texts)
    assert [said for said in read.texts if said.endswith("%")][:2] == ["50.0%", "50.0%"]  # 300 of 600 parameters
    maps = [attrs for attrs in read.of("svg") if attrs.get("class") == "map"]
    assert len(maps) == 3 and sum(attrs.get("class") == "plot" for attrs in read.of("svg")) == 1
    assert "layer1, 0: error 62.00% (61.00% to 63.00%), +60.00 points, critical" in read.texts
    assert {"complete", "yes", "draws", "3"} <= set(read.texts)
    assert "@media print" in text and "prefers-color-scheme: dark" in text and "Partial" not in text


def test_counts_and_shares_by_treatment(tmp_path: Path) -> None:
    rows = pages._counts(robustness(DEEP))
    assert [row["treatment"] for row in rows] == list(TREATMENTS[:-1])
    held = sum(100 * (place + 1) for place in range(2, 54)) / sum(100 * (place + 1) for place in range(54))
    assert rows[0] | {"treatment": ""} == {
        "treatment": "", "robust": 52, "critical": 1, "undecided": 1, "share": f"{100 * held:.1f}%"
    }  # fmt: skip


def test_a_partial_result_says_so(tmp_path: Path) -> None:
    text, _ = page([robustness(complete=False)], tmp_path)
    assert "Partial: the analysis was stopped" in text


def test_fifty_units_stay_small(tmp_path: Path) -> None:
    text, read = page([robustness(DEEP)], tmp_path)
    assert len(text.encode()) < 600_000
    cells = [words for words in read.texts if re.match(r"stage\d\.resblk\d+, (rerand|0|final): error", words)]
    assert len(cells) == 3 * 52
    assert "Table: 330 rows" in read.texts and "open" not in read.of("details")[0]  # folded, as it is long


def test_nothing_comes_from_the_network(tmp_path: Path) -> None:
    text, read = page([robustness(), joint(), search()], tmp_path)
    assert "http" not in text and "//" not in text.partition("<body>")[2].partition("<script>")[0]
    inside = [value for _, attrs in read.tags for key, value in attrs.items() if key in ("href", "src", "xlink:href")]
    assert inside and all(str(value).startswith("#") for value in inside)
    assert not read.of("link") and not read.of("iframe") and len(read.of("script")) == 1
    names = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(names) == len(set(names))


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    one = write_report([robustness(), search()], tmp_path / "a.html").read_bytes()
    assert one == write_report([robustness(), search()], tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize("kind", ["robustness", "joint_robustness", "search_joint", "unheard of"])
def test_whatever_stands_in_a_result_is_text(kind: str, tmp_path: Path) -> None:
    plain = {"robustness": robustness(), "joint_robustness": joint(), "search_joint": search()}.get(kind, joint())
    texts = {"unit", "group", "note", "added", "path", "units", "treatment"}
    rows = [{key: EVIL if key in texts - {"treatment"} else value for key, value in row.items()} for row in plain.rows]
    rows = [row | {EVIL: EVIL} for row in rows]
    settings: dict[str, Any] = {EVIL: [EVIL, {"a": EVIL}], "command": EVIL, "versions": EVIL}
    result = StoredResult(kind, EVIL, rows, EVIL, settings, source=EVIL)
    text, read = page([result, search()], tmp_path, title=EVIL, notes=[EVIL])
    assert text.count("<script") == 1 and "alert(" in text and "<script>alert" not in text
    assert read.texts.count(EVIL) >= 8
    assert all(value is None or "alert" not in value or key == "aria-label" for _, attrs in read.tags
               for key, value in attrs.items())  # fmt: skip
    evil = text.replace(str(escape(EVIL)), EVIL)
    assert evil.count("<script") > 8  # the control: so many there would be without escaping


def test_characters_no_file_takes(tmp_path: Path) -> None:
    result = robustness(title="\ud800 lone, 漢字 and \x07")
    assert "lone, 漢字" in page([result], tmp_path)[0]


def test_results_that_draw_themselves_keep_their_figure(tmp_path: Path) -> None:
    class Own(Result):
        def figure(self) -> Figure:
            return Figure(figsize=(1, 1))

    assert Own.kind == "own" and Own("t", [], "s").settings == {}
    text, read = page([Own("Mine", [{"a": 1, "b": "x"}], "a summary")], tmp_path)
    assert "data:image/png;base64," in text and len(read.of("img")) == 1


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    results = [
        StoredResult("robustness", "No rows", []),
        StoredResult("robustness", "Odd rows", [{"unit": ["a"], "error": 1}]),
        StoredResult("joint_robustness", "Other rows", [{"treatment": "0"}]),
        StoredResult("search_joint", "Texts", [{"error": "x", "share_of_params": "y", "treatment": None}]),
        StoredResult("anything", "No numbers", [{"a": None}]),
    ]
    _, read = page(results, tmp_path)
    said = [words for words in read.texts if words.startswith("No figure:")]
    assert len(said) == 4 and "'No rows' has no row" in said[0]  # an empty curve is drawn
    assert "No row: nothing was measured." in read.texts


def test_pages_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for path in (tmp_path / "taken" / "page.html", tmp_path):
        with pytest.raises(AnalysisError, match=r"cannot be written: .*; name a file"):
            write_report([search()], path)
    with pytest.raises(AnalysisError, match="a report of no result"):
        write_report([], tmp_path / "page.html")
    assert write_report([search()], tmp_path / "new" / "page.html").exists()


# ------------------------------------------------------------------------------------------------- tables


def test_tables_join_intervals_and_say_what_never_changes_once() -> None:
    table = listed(robustness().rows)
    assert table.heads[:5] == ["unit", "path", "params", "treatment", "draws"] and table.same == [("images", "450")]
    assert table.rows[0][5] == "0.62 (0.61 to 0.63)" and table.heads[5] == "error (95%)"
    assert table.shapes[:4] == ["text", "text", "number", "text"] and "note" not in table.heads
    few = listed([{"a": 1, "b": "x", "c": None}, {"b": "x", "d": math.nan}])
    assert (few.heads, few.rows) == (["a", "b", "c", "d"], [["1", "x", "-", "-"], ["-", "x", "-", "nan"]])
    many = listed([{"a": i} for i in range(MOST + 5)])
    assert (len(many.rows), many.count) == (MOST, MOST + 5)


def test_tables_can_be_sorted_by_keyboard_and_read_without_scripts(tmp_path: Path) -> None:
    text, read = page([joint()], tmp_path)
    body, _, script = text.partition("<script>")
    assert "<button" not in body and 'createElement("button")' in script and "aria-sort" in script
    assert sum(attrs.get("scope") == "col" for attrs in read.of("th")) == 11


# ------------------------------------------------------------------------------------------ several results


def test_results_of_several_kinds_have_contents(tmp_path: Path) -> None:
    other = StoredResult("detection_scores", "Detection", [{"metric": "AP", "value": 0.4}], "AP 0.4")
    _, read = page([robustness(), joint(), search(), other], tmp_path)
    links = [str(attrs["href"])[1:] for attrs in read.of("a")]
    assert links == [attrs["id"] for attrs in read.of("section")] == ["c1", "c2", "c3", "c4"]
    assert read.texts.count("Detection") == 2 and "4 results" in read.texts
    assert page([joint()], tmp_path)[1].of("nav") == []


def test_seeds_get_their_mean_and_are_folded(tmp_path: Path) -> None:
    results = [robustness(seed=seed, command=f"--seed {seed}") for seed in (0, 1, 2)]
    text, read = page([*results, robustness(draws=5)], tmp_path)
    assert "Mean over 3 seeds" in read.texts and "±1.0" in read.texts and text.count('<details class="seed">') == 3
    assert [attrs["href"] for attrs in read.of("a")] == ["#c1", "#c2"]
    others = [robustness(), robustness(("layer1", "other"), seed=1)]
    assert "Mean over" not in page(others, tmp_path)[0]


def test_what_belongs_together() -> None:
    of = robustness

    def sizes(*results: StoredResult) -> list[int]:
        return [len(group) for group in by_seed(results)]

    assert sizes(of(seed=0), of(seed=1)) == [2]
    assert sizes(of(seed=0), of(seed=1, draws=9)) == [1, 1]
    assert sizes(of(seed=0), of(seed=0)) == [1, 1]
    assert sizes(of(seed=0), of(("a", "b"), seed=1)) == [1, 1]
    runs = [of(source=f"run/seed_{i}/wide/robustness.json", model=f"run/seed_{i}/wide") for i in (0, 1, 10)]
    narrow = [of(source=f"run/seed_{i}/narrow/robustness.json", model=f"run/seed_{i}/narrow") for i in (0, 1)]
    assert sizes(*runs, *narrow) == [3, 2] and [seed_of(one) for one in runs] == ["seed_0", "seed_1", "seed_10"]
    bare = [StoredResult("shift_sparsity", "s", [{"a": i}]) for i in range(3)]
    assert sizes(*bare) == [1, 1, 1]
    assert seed_of(of(source="seed_3/x.json", seed=3)) == "seed_3" and seed_of(bare[0]) == ""


# -------------------------------------------------------------------------------------------- stored results


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    before = robustness(source="here")
    before.to_json(tmp_path / "result.json")
    after = read_result(tmp_path / "result.json", "here")
    for name in ("kind", "title", "summary", "settings", "rows", "source"):
        assert getattr(after, name) == getattr(before, name)
    assert str(after) == str(before) and len(after.figure().axes) == 2
    assert read_result(tmp_path / "result.json").source == str(tmp_path / "result.json")
    assert after.report(tmp_path / "a.html").read_bytes() == before.report(tmp_path / "b.html").read_bytes()
    for result, axes in ((joint(), 2), (search(), 1), (StoredResult("adversarial", "t", [{"accuracy": 0.5}]), 1)):
        result.to_json(tmp_path / "other.json")
        assert len(read_result(tmp_path / "other.json").figure().axes) == axes


def test_results_of_before_kinds_are_read(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"title": "Detection", "summary": "s", "rows": [{"value": 0.5}]}))
    old = read_result(tmp_path / "old.json")
    assert (old.kind, old.settings) == ("result", {}) and old.figure().axes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON: Expecting property name"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "holds no result: it needs title, summary and rows"),
        ('{"title": "t", "rows": []}', "holds no result"),
        ('{"title": 3, "summary": "s", "rows": []}', "title is no str but int"),
        ('{"title": "t", "summary": "s", "rows": [{}, 4]}', "row 1 is no dict"),
        ('{"title": "t", "summary": "s", "rows": [], "settings": null}', "settings is no dict but NoneType"),
    ],
)
def test_files_that_hold_no_result(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(AnalysisError, match=words) as raised:
        read_result(tmp_path / "file.json")
    assert "file.json" in str(raised.value) and ";" in str(raised.value)
    with pytest.raises(AnalysisError, match="cannot be read: No such file"):
        read_result(tmp_path / "none.json")


def test_every_kind_has_its_own_name() -> None:
    kinds = {name: getattr(analysis, name).kind for name in ("ShiftSparsity", "DetectionScores", "ErrorsBeside")}
    assert kinds == {
        "ShiftSparsity": "shift_sparsity",
        "DetectionScores": "detection_scores",
        "ErrorsBeside": "errors_beside",
    }
