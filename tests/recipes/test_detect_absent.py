"""Without ultralytics everything else works, and what needs it says how to get it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITHOUT = """
import sys
sys.modules["ultralytics"] = None  # as if it were not installed
from recipes.cli import main
codes = [main(words.split()) for words in sys.argv[1:]]
print(codes)
"""


def test_everything_else_works_without_ultralytics(environment: dict[str, str], tmp_path: Path) -> None:
    asked = ["locate digits_convnet", "recipes", "models digits_convnet", "locate yolo11n.yaml", "run yolov5n_spd"]
    asked += ["models --yolo", "verify digits_convnet digits_convnet --data digits --images 8"]
    command = [sys.executable, "-c", WITHOUT, *asked]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 2, 2, 2, 0]", done.stdout + done.stderr
    assert done.stderr.count('run: pip install "cnn-surgeon[yolo]"') == 3 and "Traceback" not in done.stderr
