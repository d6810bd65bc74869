"""Adding an op touches two files: the one of CONTRIBUTING is added in that way, and the contracts run over it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a contributor has it."""
    place = tmp_path_factory.mktemp("clone")
    for name in ("surgeon", "recipes", "analysis", "tests"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {key: value for key, value in environment.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_a_toy_op_is_added_in_two_files(copy: Path) -> None:
    assert "damp" not in run(copy, "recipes.cli", "ops").stdout
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / ".github" / "CONTRIBUTING.md").read_text(), re.S)
    (copy / "surgeon" / "ops" / "damp.py").write_text(code)
    listing = copy / "surgeon" / "ops" / "__init__.py"
    listing.write_text(listing.read_text() + "from surgeon.ops import damp as damp\n")
    assert re.search(r"damp +Halve what strided pools answer", run(copy, "recipes.cli", "ops").stdout)
    chosen = ("-k", "damp and not (efficientnet or convnext or vit)", "-p", "no:xdist")
    contracts = ["tests/surgeon/ops/test_contracts.py", "tests/test_architecture.py", *chosen]
    tested = run(copy, "pytest", "-q", *contracts)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert re.search(r"\d\d passed", tested.stdout), tested.stdout
    broken = code.replace("self.layer(x) / 2", "self.layer(x)[:, :1]")
    (copy / "surgeon" / "ops" / "damp.py").write_text(broken)
    assert run(copy, "pytest", "-q", "-x", *contracts).returncode == 1  # the contracts can fail
