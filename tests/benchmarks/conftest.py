"""Lets pytest collect ``bench_*.py`` in this folder, whatever the names it looks for elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect a benchmark, unless the settings or the command line name it already."""
    known = any(file_path.match(pattern) for pattern in parent.config.getini("python_files"))
    named = parent.session.isinitpath(file_path)
    if file_path.match("bench_*.py") and not known and not named:
        return pytest.Module.from_parent(parent, path=file_path)
    return None
