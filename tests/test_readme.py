"""Every block of the README runs: Python here, YAML as a recipe, the demo with ``--quick``; installs by ``.ci/run``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
ENVIRONMENT = {**os.environ, "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def run(command, folder):
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_there_is_nothing_but_what_is_run_here():
    assert {kind for kind, _ in BLOCKS} == {"bash", "python", "yaml"}
    assert len(BLOCKS) == 8


@pytest.mark.parametrize("code", blocks("python"), ids=["twelve lines", "choose", "inside", "shifts", "detectors"])
def test_python_block(code, tmp_path):
    (tmp_path / "block.py").write_text(f"import torch\ntorch.set_num_threads(2)\n{code}")
    out = run([sys.executable, "-W", "error", "block.py"], tmp_path)
    assert "same function" in out or "True" in out or out.strip().endswith("7")


def test_a_wrong_block_fails(tmp_path):
    (tmp_path / "block.py").write_text("print(no_such_name)")
    with pytest.raises(AssertionError, match="no_such_name"):
        run([sys.executable, "block.py"], tmp_path)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_block(text, tmp_path):
    import timm

    import recipes
    import surgeon

    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    recipe = recipes.load(path)
    model = timm.create_model(recipe.model.timm, num_classes=recipe.model.num_classes)
    assert surgeon.plan(model, path, 32).count("rewritten") == 3
    assert yaml.safe_load(text)["name"] == recipe.name


def test_the_two_commands():
    """Exactly two set-up commands; the first ends in the demo, the second in the tests."""
    first, second = (block.strip() for block in blocks("bash"))
    assert first == "pip install -e . && surgeon demo"
    assert second == 'pip install -e ".[dev]" && pytest -n auto'


def test_demo(tmp_path):
    out = run([sys.executable, "-m", "recipes.cli", "demo", "--quick", "--out", "demo"], tmp_path)
    assert "strided_conv" in out
    assert {path.suffix for path in (tmp_path / "demo").rglob("*")} >= {".json", ".safetensors", ".png", ".jsonl"}


def test_links_lead_to_files():
    """Of the README and of every page it leads to."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))]
    assert len(links) > 40
    lost = [(page.name, link) for page, link in links if ":" not in link and not (page.parent / link).exists()]
    assert lost == []


def test_contributing_names_commands_and_files_that_exist():
    text = (ROOT / ".github/CONTRIBUTING.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:surgeon|tests)/[\w/]+\.py)`", text)
    assert len(names) > 4
    assert all((ROOT / name).is_file() or "my_op" in name for name in names)
    scripts = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert all(command in scripts for command in ("ruff check .", "ruff format --check .", "mypy"))
