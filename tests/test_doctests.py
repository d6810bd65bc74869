"""The examples of the docstrings run, each module's by itself."""

import contextlib
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import analysis
import recipes
import surgeon

MODULES = sorted(
    name
    for package in (surgeon, analysis, recipes)
    for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)
NEED_ULTRALYTICS = (  # which is optional
    "analysis.detection_comparing",
    "analysis.detection_running",
    "analysis.detection_scores",
    "recipes.detectors",
)


SLOW = ("recipes.demo",)  # tests/recipes/test_demo.py and the README's block do the same


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODULES]
)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name in NEED_ULTRALYTICS:
        pytest.importorskip("ultralytics")
    with contextlib.suppress(ImportError):
        importlib.import_module("ultralytics")  # says where its settings lie when it is first imported
    tests = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failures: list[str] = []
    for test in tests:
        runner.run(test, out=failures.append)
    assert runner.failures == 0, "".join(failures)


def test_modules_that_need_ultralytics_exist() -> None:
    assert set(NEED_ULTRALYTICS) < set(MODULES)


def test_the_verbs_and_layers_have_examples() -> None:
    found = {
        t.name for name in MODULES for t in doctest.DocTestFinder().find(importlib.import_module(name)) if t.examples
    }
    verbs = ("locate", "plan", "apply", "record", "verify", "undo", "save", "create_model", "lower")
    where = {verb: getattr(surgeon, verb).__module__ for verb in verbs}
    assert [verb for verb in verbs if f"{where[verb]}.{verb}" not in found] == []
    assert len(found) > 40
