"""What is saved comes back as the same function in any process, or an error says what does not fit."""

import copy
import json
import os
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
from surgeon import storage
from tests.contracts import Snapshot, images, stir, undone
from tests.zoo import TINY, PlainNet, entries

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


def test_originals_that_were_dropped_stay_dropped(tmp_path: Path) -> None:
    model = tiny({"surgery": ["spd"], "keep_originals": False})
    loaded = surgeon.load(surgeon.save(model, tmp_path))
    assert torch.equal(loaded(X), model(X)) and not list(tmp_path.glob("originals-*"))
    with pytest.raises(surgeon.RefusedError, match="the originals were dropped"):
        surgeon.undo(loaded)


def test_a_plain_model_is_given(tmp_path: Path) -> None:
    model = surgeon.apply(Functional(), "spd", 64)
    surgeon.save(model, tmp_path)
    with pytest.raises(surgeon.LoadError, match=r"not built by timm.*load\(path, model=\.\.\.\)"):
        surgeon.load(tmp_path)
    given = Functional()
    loaded = surgeon.load(tmp_path, given)
    assert loaded is given and torch.equal(loaded(X), model(X))
    with pytest.raises(surgeon.LoadError, match="was operated already"):
        surgeon.load(tmp_path, given)


# who built it


@pytest.mark.parametrize("late", [False, True])
def test_a_new_classifier_is_no_other_model(late: bool, tmp_path: Path) -> None:
    model = surgeon.create_model("test_resnet", "spd" if late else None)
    model.reset_classifier(5)
    if not late:
        surgeon.apply(model, "spd")
    assert torch.equal(surgeon.load(surgeon.save(model, tmp_path))(X), model.eval()(X))


@pytest.mark.parametrize("arguments", [{"global_pool": "max"}, {"img_size": (64, 64)}])
def test_arguments_read_off_the_model(arguments: dict[str, Any], tmp_path: Path) -> None:
    name = "test_vit" if "img_size" in arguments else "test_resnet"
    for build in (timm.create_model, surgeon.create_model):
        model = surgeon.apply(build(name, num_classes=4, **arguments), "spd").eval()
        assert torch.equal(surgeon.load(surgeon.save(model, tmp_path))(X), model(X))


def strided(**arguments: Any) -> nn.Module:
    return timm.create_model("resnet18", num_classes=4, output_stride=8, **arguments)


def without_pool() -> nn.Module:
    model = surgeon.create_model("test_resnet", num_classes=4)
    model.maxpool = nn.Identity()
    return model


def with_dropout() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=4, drop_rate=0.3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (strided, r"'layer3\.0\.conv1': .*stride=\(2, 2\).* there, .*stride=\(1, 1\).* here"),
        (without_pool, r"'maxpool': MaxPool2d.* there, Identity\(\) here"),
        (with_dropout, r"'drop_rate': 0\.0 there, 0\.3 here"),
    ],
)
def test_a_builder_that_would_build_another_model_is_not_believed(
    build: Callable[[], nn.Module], words: str, tmp_path: Path
) -> None:
    model = surgeon.apply(build(), "spd", 64).eval()
    surgeon.save(model, tmp_path)
    with pytest.raises(surgeon.LoadError, match=rf"does not know how.*builds another model: {words}.*pass load"):
        surgeon.load(tmp_path)
    assert torch.equal(surgeon.load(tmp_path, build())(X), model(X))


def test_another_forward_is_another_model(tmp_path: Path) -> None:
    model = tiny(None)
    kept = model.forward_features
    model.forward_features = lambda x: kept(x.flip(-1))
    surgeon.save(model, tmp_path)
    with pytest.raises(surgeon.LoadError, match=r"builds another model: operation 1: .*flip"):
        surgeon.load(tmp_path)


def test_what_users_note_on_a_model_does_not_matter(tmp_path: Path) -> None:
    model = tiny().double()
    model.epoch, model.best = 3, 0.97
    assert torch.equal(surgeon.load(surgeon.save(model, tmp_path))(X.double()), model(X.double()))


def test_a_model_of_other_settings_is_refused(tmp_path: Path) -> None:
    surgeon.save(surgeon.apply(timm.create_model("resnet18", num_classes=4), "spd", 64), tmp_path)
    with pytest.raises(surgeon.LoadError, match=r"'layer3\.0\.conv1\.weight': the model has"):
        surgeon.load(tmp_path, strided())
    with pytest.raises(
        surgeon.LoadError, match=r"is another: 'global_pool\.pool': AdaptiveAvg.* there, AdaptiveMax.* here"
    ):
        surgeon.load(tmp_path, timm.create_model("resnet18", num_classes=4, global_pool="max"))
    with pytest.raises(surgeon.LoadError, match=r"'fc\.weight': the model has \(7, 512\), the file expects \(4, 512\)"):
        surgeon.load(tmp_path, timm.create_model("resnet18", num_classes=7))


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


# damage


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / storage.MANIFEST).read_text())
    change(data)
    (folder / storage.MANIFEST).write_text(json.dumps(data))


def truncate(folder: Path) -> None:
    (file,) = folder.glob("weights-*")
    file.write_bytes(file.read_bytes()[:-10])


def flip(folder: Path) -> None:
    (file,) = folder.glob("originals-*")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, r"weights-.*truncated or was edited.*restore it"),
        (flip, r"originals-.*truncated or was edited"),
        (lambda f: next(f.glob("weights-*")).unlink(), r"weights-.*cannot be read"),
        (lambda f: (f / storage.MANIFEST).unlink(), r"holds no recipe\.json"),
        (lambda f: (f / storage.MANIFEST).write_text("{"), r"recipe\.json is damaged"),
        (lambda f: edit(f, lambda d: d.update(schema=9)), r"field 'schema' is 9, this version reads 1"),
        (lambda f: edit(f, lambda d: d.pop("shapes")), r"field 'shapes' is missing"),
        (lambda f: edit(f, lambda d: d["files"].update(weights=3)), r"field 'files\.weights' is 3"),
        (
            lambda f: edit(f, lambda d: (d["shapes"].update({"fc.weight": [3, 3]}), d["versions"].update(timm="0.9"))),
            r"'fc\.weight'.*expects \(3, 3\).*versions differ: timm 0\.9 there",
        ),
        (lambda f: edit(f, lambda d: d["builder"].update(timm="no_such")), r"builder .*no_such.* fails"),
        (lambda f: edit(f, lambda d: d["record"]["recipe"][0].update(select={"path": ["nowhere"]})), "does not fit"),
    ],
)
def test_damage_is_named(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    surgeon.save(tiny(), tmp_path)
    damage(tmp_path)
    with pytest.raises(surgeon.LoadError, match=words):
        surgeon.load(tmp_path)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_crash_while_saving_leaves_the_older_model(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    first, second = tiny(), stir(tiny(), seed=9)
    surgeon.save(first, tmp_path)
    for crash_at in range(6):
        count = iter(range(100))
        real = getattr(os, name) if name == "fsync" else getattr(Path, name)

        def crash(*args: Any, count: Any = count, real: Any = real, crash_at: int = crash_at) -> Any:
            if next(count) == crash_at:
                raise OSError(28, "No space left on device")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os if name == "fsync" else Path, name, crash)
            try:
                surgeon.save(second, tmp_path)
            except OSError:
                assert torch.equal(surgeon.load(tmp_path)(X), first(X))
            else:
                assert crash_at == 3  # weights, originals and manifest are three
                break
    assert torch.equal(surgeon.load(tmp_path)(X), second(X))
    assert sorted(p.name.split("-")[0] for p in tmp_path.iterdir()) == ["originals", "recipe.json", "weights"]


def test_what_cannot_be_saved_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(surgeon.SurgeonError, match="it is a file; name a folder"):
        surgeon.save(tiny(), tmp_path / "file")
    with pytest.raises(surgeon.SurgeonError, match="cannot save a lowered model: save the one it was made from"):
        surgeon.save(surgeon.lower(tiny()), tmp_path / "lowered")
    assert not (tmp_path / "lowered").exists()


def test_shared_modules_are_saved_once_and_stay_shared(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = PlainNet()
        model.alias = model.stem
        return model

    model = surgeon.apply(build(), "spd", 64).eval()
    loaded = surgeon.load(surgeon.save(model, tmp_path), build())
    assert loaded.alias is loaded.stem and torch.equal(loaded(X), model(X))
    assert copy.deepcopy(loaded).alias[0].weight.shape == model.stem[0].weight.shape
