"""Every test starts from the same seed, on one thread, offline."""

import atexit
import os
import random
import shutil
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = os.environ["YOLO_OFFLINE"] = "1"
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="ultralytics-")  # its settings: not in the user's home
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import pytest
import torch

atexit.register(shutil.rmtree, os.environ["YOLO_CONFIG_DIR"], ignore_errors=True)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background jobs; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite("tests.contracts", "tests.surgeon.completeness")  # a failure shows the values
torch.set_num_threads(1)  # tensors this small are many times faster so


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-matrix", action="store_true", help="rewrite the expected data of tests/matrix")


LONGEST = ("tests/test_", "tests/recipes/", "tests/surgeon/yolo/")  # first, so that no process ends with them alone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
