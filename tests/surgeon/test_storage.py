"""A saved model is whole, old or new, at any moment; damage is named and loads nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon.manifest import FIELDS, MANIFEST
from tests.contracts import images, stir
from tests.zoo import PlainNet

X = images(64, dtype=torch.float32)


def tiny() -> nn.Module:
    return stir(surgeon.create_model("test_resnet", "spd", num_classes=10)).eval()


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


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
        (lambda f: (f / MANIFEST).unlink(), r"holds no recipe\.json"),
        (lambda f: (f / MANIFEST).write_text("{"), r"recipe\.json is damaged"),
        (lambda f: edit(f, lambda d: d.update(schema=9)), r"field 'schema' is 9, this version reads 1"),
        (lambda f: edit(f, lambda d: d.pop("shapes")), r"field 'shapes' is missing"),
        (lambda f: edit(f, lambda d: d["files"].pop("originals")), r"field 'files' is \{'weights'"),
        (lambda f: edit(f, lambda d: d["frozen"].append("fc.wait")), r"field 'frozen' is \['fc\.wait'\]"),
        (lambda f: edit(f, lambda d: d.update(record=None)), r"field 'keep_originals' is True"),
        (lambda f: edit(f, lambda d: d["structure"].update(fc="Linear(1)")), r"'fc': Linear\(1\) there, Linear\(in"),
        (
            lambda f: edit(f, lambda d: (d["shapes"].update({"fc.weight": [3, 3]}), d["versions"].update(timm="0.9"))),
            r"'fc\.weight'.*expects \(3, 3\).*versions differ: timm 0\.9 there",
        ),
        (lambda f: edit(f, lambda d: d["builder"].update(timm="no_such")), r"no_such.* fails"),
        (lambda f: edit(f, lambda d: d["record"]["recipe"][0].update(select={"path": ["nowhere"]})), "does not fit"),
    ],
)
def test_damage_is_named(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    surgeon.save(tiny(), tmp_path)
    damage(tmp_path)
    with pytest.raises(surgeon.LoadError, match=words):
        surgeon.load(tmp_path)


NESTED = [("record", name) for name in ("changes", "params", "recipe", "notes")] + [("files", "weights")]


@pytest.mark.parametrize("value", [3.5, [[0]], {"a": 0.5}], ids=repr)
@pytest.mark.parametrize("field", [*((name,) for name in FIELDS), *NESTED], ids=".".join)
def test_a_field_of_another_kind_is_named(field: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    surgeon.save(surgeon.apply(PlainNet(), "spd", 64), tmp_path)

    def change(data: dict[str, Any]) -> None:
        for name in field[:-1]:
            data = data[name]
        data[field[-1]] = value

    edit(tmp_path, change)
    with pytest.raises(surgeon.LoadError, match=rf"recipe\.json.* field '{field[0]}' is"):
        surgeon.load(tmp_path, PlainNet())


def test_no_folder_of_ours(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    (tmp_path / "empty").mkdir()
    for path, words in {
        "model.pt": "is a file, and no whole checkpoint of an operated detector; name a folder",
        "empty": r"holds no recipe\.json; name a folder",
        "nowhere": "name what surgeon.save",
    }.items():
        with pytest.raises(surgeon.LoadError, match=rf"{path}[^;]*{words}|no file or folder .*{path}; {words}"):
            surgeon.load(tmp_path / path)


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
            except surgeon.SurgeonError as error:
                assert "No space left on device; an older model in it is as it was" in str(error)
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
    with pytest.raises(surgeon.SurgeonError, match=r"cannot save to .*file/model: Not a directory"):
        surgeon.save(tiny(), tmp_path / "file" / "model")
