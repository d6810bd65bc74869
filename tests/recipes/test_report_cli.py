"""`surgeon report`: what lies below a folder becomes one page; what is wrong is said in one message each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import cli
from recipes.report_cli import collect
from tests.analysis.rows import joint, robustness, search


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["report", *arguments])
    seen = capsys.readouterr()
    assert "Traceback" not in seen.err + seen.out
    return code, seen.out, seen.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of one analysis, two other results, and JSON that is none."""
    place = tmp_path / "runs"
    for seed in (0, 2, 10):
        (place / f"seed_{seed}" / "net").mkdir(parents=True)
        robustness(seed=seed).to_json(place / f"seed_{seed}" / "net" / "robustness.json")
        (place / f"seed_{seed}" / "summary.json").write_text('{"rows": [{"epoch": 1}]}')
    joint().to_json(place / "joint.json")
    search().to_json(place / "search.json")
    (place / "list.json").write_text("[1, 2]")
    (place / "metrics.jsonl").write_text("{not read}")
    return place


def test_all_results_become_one_page(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, err = call(capsys, str(folder))
    assert code == 0 and not err and out.startswith(f"{folder / 'report.html'}: 5 results (")
    page = (folder / "report.html").read_text()
    assert "<h1>Results of runs</h1>" in page and "Mean over 3 seeds" in page and page.count("<section") == 3
    assert page.index("<summary>seed_2 ") < page.index("<summary>seed_10 ")
    assert "seed_2/net/robustness.json" in page and str(folder) not in page
    assert call(capsys, str(folder))[1] == out  # the page is no result


def test_title_and_file(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "all.html"
    code, _, _ = call(capsys, str(folder), "--out", str(file), "--title", "A <b> & c")
    assert code == 0 and "<h1>A &lt;b&gt; &amp; c</h1>" in file.read_text()
    assert not (folder / "report.html").exists()
    code, out, _ = call(capsys, str(folder / "seed_0"))
    assert code == 0 and "1 result (" in out
    assert "<h1>Layer-wise robustness of a net</h1>" in (folder / "seed_0" / "report.html").read_text()


def test_damaged_files_are_named_and_the_others_joined(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "cut.json").write_text('{"title": "cut <i>short')
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00")
    (folder / "odd.json").write_text(json.dumps({"title": "odd", "summary": "", "rows": [1]}))
    (folder / "gone.json").symlink_to(folder / "nowhere.json")
    (folder / "folder.json").mkdir()
    code, out, err = call(capsys, str(folder))
    assert code == 0 and "5 results, 3 left out" in out
    for words in ("cut.json is no JSON", "binary.json is no JSON", "odd.json: row 0 is no dict"):
        assert words in err and words in (folder / "report.html").read_text()
    assert len(err.splitlines()) == 3


def test_a_folder_without_results(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, str(tmp_path))
    assert code == 2 and "0 JSON files below it" in err and "title, summary and rows" in err
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "cut.json").write_text("{")
    code, _, err = call(capsys, str(tmp_path))
    assert code == 2 and "2 JSON files below it" in err and "cut.json is no JSON" in err
    assert not (tmp_path / "report.html").exists()


def test_mistakes(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for arguments, words in (
        ([str(folder / "none")], "none is not there; name a folder of results"),
        ([str(folder / "joint.json")], "joint.json is a file; name the folder it lies in"),
        ([str(folder), "--out", str(folder / "joint.json" / "page.html")], "cannot be written"),
        ([str(folder), "--out", str(folder)], "cannot be written"),
        ([], "Missing argument"),
    ):
        code, out, err = call(capsys, *arguments)
        assert code == 2 and words in err and not out


def test_files_too_large_for_a_result_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(collect(folder)[0]) == 5
    monkeypatch.setattr("recipes.report_cli.LARGEST", 10)
    assert collect(folder) == ([], [], 9)


def test_help_does_not_wait_for_matplotlib(environment: dict[str, str]) -> None:
    code = "import sys; from recipes.cli import main; main(['report', '--help']); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0
