"""What is saved comes back as the same function in any process, or an error says what does not fit."""

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from tests.contracts import Snapshot, images, stir, undone
from tests.zoo import TINY, PlainNet, Wrap, entries

X = images(64, dtype=torch.float32)
CONV_SPD = {"spd": {"order": "conv-spd"}}
RECIPES = {
    "spd": "spd",
    "minimal, full": {"spd": {"kernel": "minimal", "pool_conv": "full"}},
    "fresh": {"spd": {"init": "fresh", "seed": 3}},
    "no pools": {"spd": {"pool": "remove"}, "select": {"path": "maxpool"}},
    "before the norm": {"spd": {"order": "conv-spd", "before": "norm"}, "select": {"path": ["conv1*", "maxpool"]}},
}


class Functional(nn.Module):
    """A pool that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), 3, 2, 1)


def tiny(recipe: Any = "spd", **arguments: Any) -> nn.Module:
    model = surgeon.create_model("test_resnet", **{"num_classes": 10, **arguments})
    return stir(model if recipe is None else surgeon.apply(model, recipe, 64)).eval()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_loaded_is_what_was_saved(recipe: Any, tmp_path: Path) -> None:
    model = tiny(None)
    before = Snapshot.of(model, identity=False)
    stir(surgeon.apply(model, recipe, 64), seed=7)
    saved = Snapshot.of(model, identity=False)
    loaded = surgeon.load(surgeon.save(model, tmp_path))
    assert saved.differences(Snapshot.of(loaded, identity=False)) == []
    assert surgeon.record(loaded) == surgeon.record(model)
    assert torch.equal(loaded(X), model(X))
    undone(before, surgeon.undo(loaded), identity=False)


def test_a_fresh_process_loads_and_undoes(tmp_path: Path) -> None:
    model = tiny(None)
    plain = model(X)
    stir(surgeon.apply(model, "spd", 64), seed=5)
    surgeon.save(model, tmp_path / "model")
    torch.save((X, model(X), plain), tmp_path / "outputs.pt")
    code = """
import sys, torch, surgeon
torch.set_num_threads(1)
x, operated, plain = torch.load(sys.argv[1] + "/outputs.pt")
model = surgeon.load(sys.argv[1] + "/model")
print(torch.equal(model(x), operated), torch.equal(surgeon.undo(model)(x), plain))
"""
    run = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.stdout == "True True\n", done.stderr


@pytest.mark.parametrize(**entries(TINY))
def test_timms_models_need_no_hint(entry: Any, tmp_path: Path) -> None:
    model = entry.build()
    surgeon.apply(model, "spd", entry.size)
    x = images(entry.size, dtype=torch.float32)
    assert torch.equal(surgeon.load(surgeon.save(model, tmp_path))(x), model(x))


@pytest.mark.parametrize("recipe", [None, "spd"])
def test_nothing_rewritten_is_saved_too(recipe: Any, tmp_path: Path) -> None:
    model = surgeon.create_model("inception_next_atto", recipe, num_classes=3).eval()
    loaded = surgeon.load(surgeon.save(model, tmp_path))
    assert torch.equal(loaded(X), model(X))
    assert surgeon.record(loaded) == surgeon.record(model)
    undone_model = surgeon.undo(tiny())
    assert torch.equal(surgeon.load(surgeon.save(undone_model, tmp_path))(X), undone_model(X))


def test_two_recipes_one_after_another(tmp_path: Path) -> None:
    model = tiny({"spd": {}, "select": {"path": "conv1.0"}})
    surgeon.apply(model, {"spd": {"kernel": "minimal"}, "select": {"path": "layer2*"}})
    loaded = surgeon.load(surgeon.save(model, tmp_path))
    assert torch.equal(loaded(X), model(X))
    assert [c.path for c in surgeon.record(loaded).changes] == [c.path for c in surgeon.record(model).changes]
    assert torch.equal(surgeon.undo(loaded)(X), surgeon.undo(model)(X))


def test_originals_that_were_dropped_stay_dropped(tmp_path: Path) -> None:
    model = tiny({"surgery": ["spd"], "keep_originals": False})
    loaded = surgeon.load(surgeon.save(model, tmp_path))
    assert torch.equal(loaded(X), model(X)) and not list(tmp_path.glob("originals-*"))
    with pytest.raises(surgeon.RefusedError, match="the originals were not kept"):
        surgeon.undo(loaded)


def test_dropped_originals_and_a_new_classifier(tmp_path: Path) -> None:
    model = surgeon.apply(PlainNet(), {"surgery": ["spd"], "keep_originals": False}, 64).eval()
    given = PlainNet()
    model.head, given.head = nn.Linear(12, 3), nn.Linear(12, 3)
    assert torch.equal(surgeon.load(surgeon.save(model, tmp_path), given)(X), model(X))


def test_every_tensor_keeps_its_precision(tmp_path: Path) -> None:
    model = tiny(None)
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d) and name.startswith("layer"):
            part.bfloat16()
    surgeon.apply(model, "spd")
    saved = Snapshot.of(model, identity=False)
    loaded = surgeon.load(surgeon.save(model, tmp_path))
    assert saved.differences(Snapshot.of(loaded, identity=False)) == []
    plain = Snapshot.of(surgeon.undo(model), identity=False)
    undone(plain, surgeon.undo(loaded), identity=False)


def test_views_of_one_storage_are_saved_apart(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model, table = PlainNet().eval(), torch.arange(6.0)
        model.register_buffer("head_part", table[:4])
        model.register_buffer("tail_part", table[2:])
        return model

    model = surgeon.apply(build(), "spd", 64)
    loaded = surgeon.load(surgeon.save(model, tmp_path), build())
    assert torch.equal(loaded(X), model(X)) and torch.equal(loaded.tail_part, torch.tensor([2.0, 3, 4, 5]))


def test_a_plain_model_is_given(tmp_path: Path) -> None:
    model = surgeon.apply(Functional(), "spd", 64)
    surgeon.save(model, tmp_path)
    with pytest.raises(surgeon.LoadError, match=r"names no model of timm.*load\(path, model=\.\.\.\)"):
        surgeon.load(tmp_path)
    given = Functional()
    loaded = surgeon.load(tmp_path, given)
    assert loaded is given and torch.equal(loaded(X), model(X))
    with pytest.raises(surgeon.LoadError, match="was operated already"):
        surgeon.load(tmp_path, given)


def test_derived_classes_come_back_and_go(tmp_path: Path) -> None:
    model = Functional()
    before = Snapshot.of(model, identity=False, modes=False)
    loaded = surgeon.load(surgeon.save(surgeon.apply(model, "spd", 64), tmp_path), Functional())
    assert type(loaded) is not Functional and isinstance(loaded, Functional)
    undone(before, surgeon.undo(loaded), identity=False, modes=False)
    assert type(loaded) is Functional


def resnet(**arguments: Any) -> nn.Module:
    return timm.create_model("resnet18", **{"num_classes": 4, **arguments})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"output_stride": 8}, r"'layer3\.0\.conv1\.weight': the model has \(256, 128, 3, 3\), the file expects"),
        ({"global_pool": "max"}, r"another: 'global_pool\.pool': AdaptiveAvg.* there, AdaptiveMax.* here"),
        ({"num_classes": 7}, r"'fc\.weight': the model has \(7, 512\), the file expects \(4, 512\)"),
        ({"in_chans": 1}, r"'conv1\.weight': the model has \(64, 1, 7, 7\), the file expects \(64, 3, 7, 7\)"),
    ],
    ids=str,
)
def test_a_given_model_that_does_not_fit_stays_as_it_was(arguments: Any, words: str, tmp_path: Path) -> None:
    surgeon.save(surgeon.apply(resnet(), "spd", 64), tmp_path)
    given = stir(resnet(**arguments)).train()
    before = Snapshot.of(given)
    with pytest.raises(surgeon.LoadError, match=words):
        surgeon.load(tmp_path, given)
    assert before.differences(Snapshot.of(given)) == []


def test_frozen_before_and_after(tmp_path: Path) -> None:
    model = tiny(None)
    model.conv1[0].weight.requires_grad_(False)
    surgeon.apply(model, "spd")
    loaded = surgeon.load(surgeon.save(model, tmp_path))
    assert not loaded.conv1[0].weight.requires_grad and loaded.fc.weight.requires_grad
    assert not surgeon.undo(loaded).conv1[0].weight.requires_grad and loaded.fc.weight.requires_grad


def test_loading_draws_nothing(tmp_path: Path) -> None:
    surgeon.save(tiny(), tmp_path)
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    surgeon.load(tmp_path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), repr(np.random.get_state()))


def test_shared_modules_are_saved_once_and_stay_shared(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = PlainNet()
        model.alias = model.stem
        return model

    model = surgeon.apply(build(), "spd", 64).eval()
    loaded = surgeon.load(surgeon.save(model, tmp_path), build())
    assert loaded.alias is loaded.stem and torch.equal(loaded(X), model(X))
    assert copy.deepcopy(loaded).alias[0].weight.shape == model.stem[0].weight.shape
    assert surgeon.undo(loaded).alias is loaded.stem and isinstance(loaded.stem[0], nn.Conv2d)
    assert torch.equal(loaded(X), surgeon.undo(model)(X))


def test_a_given_model_with_another_forward_is_refused(tmp_path: Path) -> None:
    def build(negative: bool = False) -> nn.Module:
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 4, 3, 2, 1)
        return Wrap(lambda m, x: (-m.conv(x) if negative else m.conv(x)).relu(), 4, conv=conv)

    model = surgeon.apply(build(), "spd", 64)
    surgeon.save(model, tmp_path)
    given = build(negative=True)
    before = Snapshot.of(given)
    with pytest.raises(surgeon.LoadError, match=r"computes something else: operation \d+: relu.* there, neg.* here"):
        surgeon.load(tmp_path, given)
    assert before.differences(Snapshot.of(given)) == []
    assert torch.equal(surgeon.load(tmp_path, build())(X), model(X))


@pytest.mark.parametrize("recipe", [None, "spd"])
def test_changed_buffers_outside_the_state_dict_are_kept(recipe: Any, tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = PlainNet().eval()
        model.register_buffer("scale", torch.ones(3), persistent=False)
        return model

    model = surgeon.apply(build(), recipe, 64) if recipe else build()
    model.scale.fill_(2)
    loaded = surgeon.load(surgeon.save(model, tmp_path), build())
    assert torch.equal(loaded.scale, torch.full((3,), 2.0)) and torch.equal(loaded(X), model(X))
    if recipe:
        assert torch.equal(surgeon.undo(loaded).scale, surgeon.undo(model).scale)


class Counter(nn.Module):
    """Keeps what is no tensor in its state."""

    def get_extra_state(self) -> Any:
        return {"seen": 3}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"seen": 3}


def with_counter() -> nn.Module:
    model = PlainNet()
    model.counter = Counter()
    return model


def gutted() -> nn.Module:
    model = surgeon.apply(PlainNet(), "spd", 64)
    model.stem = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (with_counter, r"'counter\._extra_state' of the state dict: it is a dict, and files hold tensors only"),
        (lambda: PlainNet().to("meta"), "on the meta device and has no values; load weights first"),
        (gutted, "cannot save, for the saved model could not be undone"),
    ],
)
def test_what_cannot_be_saved_leaves_the_older_model(
    build: Callable[[], nn.Module], words: str, tmp_path: Path
) -> None:
    model = surgeon.save(tiny(), tmp_path)
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    with pytest.raises(surgeon.SurgeonError, match=words):
        surgeon.save(build(), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    surgeon.save(tiny(), tmp_path)
    with pytest.raises(surgeon.LoadError, match="cannot load to device 'cpux'"):
        surgeon.load(tmp_path, device="cpux")
