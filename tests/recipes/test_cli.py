"""The command line: it answers, it explains its mistakes in one message, and it never shows a traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import recipes
import surgeon
from recipes import cli
from surgeon import SurgeonError

COMMANDS = (
    "demo",
    "locate",
    "plan",
    "apply",
    "verify",
    "train",
    "run",
    "report",
    "ops",
    "models",
    "recipes",
    "analyze",
)
SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"timm": "digits_convnet"},
    "data": {"dataset": "digits", "size": 8, "canvas": 12, "max_train": 64, "max_val": 64},
    "surgery": ["spd"],
    "train": {"epochs": 1, "batch_size": 32},
}


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    seen = capsys.readouterr()
    assert "Traceback" not in seen.err + seen.out
    return code, seen.out, seen.err


def test_every_command_is_there_and_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    listed = re.findall(r"^  (\w+)  ", out, flags=re.MULTILINE)
    assert code == 0 and tuple(listed) == COMMANDS
    for name in COMMANDS:
        code, out, _ = call(capsys, name, "--help")
        assert code == 0 and f"Examples: surgeon {name}" in " ".join(out.split())


def test_help_does_not_wait_for_torch(environment: dict[str, str]) -> None:
    code = "import sys; from recipes.cli import main; main(['run', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["locate", "resnet5"], "no model 'resnet5'; did you mean 'resnet50'?"),
        (["locate", "no/folder"], "no folder 'no/folder'"),
        (["locate", "digits_convnet", "--input-size", "big"], "--input-size big: not a size"),
        (["locate", "digits_convnet", "--input-size", "0"], "--input-size 0: not a size"),
        (["plan", "digits_convnet", "sdp"], "did you mean 'spd'?"),
        (["plan", "vit_base_patch16_224", "missing.yaml"], "missing.yaml"),
        (["verify", "digits_convnet", "digits_convnet", "--data", "digit"], "did you mean 'digits'?"),
        (["run", "digits_spt"], "did you mean 'digits_spd'?"),
        (["run", "digits_spd", "--device", "tpu"], "train.device: must be auto"),
        (["train", "nowhere.yaml"], "no file 'nowhere.yaml'"),
        (["models", "nonesuch*"], "no model like 'nonesuch*'"),
        (["lokate"], "No such command 'lokate'"),
        (["locate"], "Missing argument"),
        (["verify", "a", "b"], "Missing option '--data'"),
    ],
)
def test_mistakes_end_with_code_2_and_one_message(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2 and words in err and not out


def test_files_that_cannot_be_written_are_one_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    code, _, err = call(capsys, "apply", "digits_convnet", "spd", "--out", str(tmp_path / "taken" / "below"))
    assert code == 2 and "taken" in err


def test_programming_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgeon, "list_ops", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["ops"])


def test_locate_and_plan(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "locate", "digits_convnet")
    assert code == 0 and "stem.0" in out and "strided_pool" in out
    code, out, _ = call(capsys, "locate", "digits_convnet", "--input-size", "1,64,64", "--json")
    sites = json.loads(out)
    assert code == 0 and "64" in json.dumps(sites)
    code, out, _ = call(capsys, "plan", "digits_convnet", "spd")
    assert code == 0 and "3 rewritten" in out
    code, out, _ = call(capsys, "plan", "digits_convnet", "digits_spd", "--json")
    assert code == 0 and len(json.loads(out)["changes"]) == 3


def test_apply_then_verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plain, out = str(tmp_path / "plain"), str(tmp_path / "operated")
    surgeon.save(surgeon.create_model("digits_convnet"), plain)
    code, said, _ = call(capsys, "apply", plain, "spd", "--out", out)
    assert code == 0 and "3 rewritten" in said and "surgeon.load" in said
    code, said, _ = call(capsys, "verify", plain, out, "--data", "digits", "--images", "70")
    assert code == 0 and said.startswith("same function: over 128 images")
    code, said, _ = call(capsys, "verify", "digits_convnet", out, "--data", "digits_spd")
    assert code == 0 and said.startswith("not the same function")


def test_run_and_train(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, out = tmp_path / "small.yaml", str(tmp_path / "out")
    file.write_text(yaml.safe_dump(SMALL))
    code, said, _ = call(capsys, "run", str(file), "--out", out, "--device", "cpu")
    assert code == 0 and "Everything is in" in said and (tmp_path / "out" / "weights").is_dir()
    file.write_text(yaml.safe_dump({**SMALL, "train": {"epochs": 1, "batch_size": 16}}))
    code, _, err = call(capsys, "train", str(file), "--out", out, "--device", "cpu")
    assert code == 2 and "train.batch_size: 32 in the folder, 16 in the recipe" in err
    code, _, _ = call(capsys, "train", str(file), "--out", out, "--device", "cpu", "--no-resume", "--quick")
    assert code == 0


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "ops")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == surgeon.list_ops()
    code, out, _ = call(capsys, "recipes")
    assert code == 0 and all(name in out for name in recipes.shipped()) and "real digits" in out
    code, out, _ = call(capsys, "models", "digits*")
    assert code == 0 and out.split() == ["digits_convnet", "digits_convnet_nobn", "digits_vgg16", "digits_vgg_flat"]


def test_a_foreign_package_of_our_name_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    assert cli.shadowed() is None
    foreign = tmp_path / "surgeon"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-c", "from recipes.cli import main; raise SystemExit(main(['ops']))"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path.parent,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"another package named 'surgeon' hides this library's: found {foreign}" in done.stderr
    assert "take it out of PYTHONPATH" in done.stderr


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path, environment: dict[str, str]) -> None:
    file, out = tmp_path / "long.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({**SMALL, "surgery": [], "train": {"epochs": 2000, "batch_size": 32}}))
    command = [sys.executable, "-m", "recipes.cli", "run", str(file), "--out", str(out), "--device", "cpu"]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if list((out / "checkpoints").glob("epoch_000[3-9]")) or child.poll() is not None:
            break
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    said, err = child.communicate(timeout=60)
    assert child.returncode == 130, said + err
    assert "Run the same command again to go on." in said and "Traceback" not in said + err
    assert any((out / "checkpoints").glob("epoch_*"))


def test_sizes() -> None:
    assert cli._size("224") == 224 and cli._size("3,64,32") == (3, 64, 32) and cli._size("64x32") == (64, 32)
    with pytest.raises(SurgeonError):
        cli._size("1,2,3,4")
