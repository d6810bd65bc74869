"""Who built a model is known for sure, or not claimed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import surgeon
from tests.contracts import images, leaves_no_trace, stir

X = images(64, dtype=torch.float32)


def saved(model: nn.Module, folder: Path) -> nn.Module:
    """The model as ``load`` rebuilds it without a hint."""
    return surgeon.load(surgeon.save(model.eval(), folder))


@pytest.mark.parametrize("late", [False, True])
def test_a_new_classifier_is_no_other_model(late: bool, tmp_path: Path) -> None:
    model = surgeon.create_model("test_resnet", "spd" if late else None)
    model.reset_classifier(5)
    if not late:
        surgeon.apply(model, "spd")
    assert torch.equal(saved(model, tmp_path)(X), model(X))


@pytest.mark.parametrize("build", [timm.create_model, surgeon.create_model])
@pytest.mark.parametrize("arguments", [{"global_pool": "max"}, {"img_size": (64, 64)}, {"in_chans": 1}, {}])
def test_arguments_are_read_off_the_model(build: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    name = "test_vit" if "img_size" in arguments else "test_resnet"
    model = surgeon.apply(build(name, num_classes=4, **arguments), "spd")
    x = X[:, : arguments.get("in_chans", 3)]
    assert torch.equal(saved(model, tmp_path)(x), model(x))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_resnet", {"drop_rate": 0.3}),
        ("test_vit", {"img_size": 64, "drop_rate": 0.3, "drop_path_rate": 0.2}),
        ("test_convnext", {"drop_rate": 0.3, "drop_path_rate": 0.2}),
    ],
)
def test_dropout_is_read_off_the_model(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    model = surgeon.apply(timm.create_model(name, num_classes=4, **arguments), "spd", 64)
    loaded = saved(model, tmp_path)
    rates = [[str(m) for m in one.modules() if "Drop" in type(m).__name__] for one in (model, loaded)]
    assert getattr(loaded, "drop_rate", 0.3) == 0.3
    assert torch.equal(loaded(X), model(X)) and rates[0] == rates[1]


def test_a_classifier_put_in_by_hand_is_no_other_model(tmp_path: Path) -> None:
    model = surgeon.create_model("test_resnet", "spd", num_classes=4)
    model.fc = nn.Linear(model.fc.in_features, 3)
    assert torch.equal(saved(model, tmp_path)(X), model(X))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timm": "hf-hub:someone/model"}, "no model of its own named 'hf-hub:someone/model'"),
        ({"arguments": {"checkpoint_path": "evil.pth"}}, "'checkpoint_path' reads weights from elsewhere"),
        ({"arguments": {"pretrained_cfg": {"url": "http://a/b"}}}, "'pretrained_cfg' reads weights from elsewhere"),
    ],
)
def test_an_edited_builder_fetches_nothing(
    change: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surgeon.save(surgeon.create_model("test_resnet", "spd"), tmp_path)
    manifest = json.loads((tmp_path / "recipe.json").read_text())
    manifest["builder"].update(change)
    (tmp_path / "recipe.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(surgeon.LoadError, match=words):
        surgeon.load(tmp_path)


def test_what_was_remembered_is_mended_by_what_is_seen(tmp_path: Path) -> None:
    model = surgeon.create_model("test_resnet", num_classes=4, drop_rate=0.2, act_layer="gelu")
    model.reset_classifier(5, global_pool="max")
    loaded = saved(surgeon.apply(model, "spd"), tmp_path)
    assert torch.equal(loaded(X), model(X)) and loaded.drop_rate == 0.2


def test_tuples_stay_tuples(tmp_path: Path) -> None:
    model = surgeon.create_model("test_resnet", "spd", num_classes=4, channels=(16, 32, 40, 48))
    loaded = saved(model, tmp_path)
    assert torch.equal(loaded(X), model(X)) and torch.equal(saved(loaded, tmp_path / "again")(X), model(X))


def test_no_data_no_builder(tmp_path: Path) -> None:
    model = surgeon.create_model("test_resnet", "spd", num_classes=4, act_layer=nn.ELU)
    with pytest.raises(surgeon.LoadError, match=r"another model: 'conv1\.2': ReLU.* there, ELU.* here"):
        saved(model, tmp_path)


def test_a_builder_that_fails_is_not_claimed(tmp_path: Path, monkeypatch: Any) -> None:
    model = surgeon.create_model("test_resnet", "spd", num_classes=4)

    def fails(*_: Any, **__: Any) -> nn.Module:
        raise RuntimeError("no such block")

    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", fails)
        surgeon.save(model, tmp_path)
    with pytest.raises(surgeon.LoadError, match="another model: RuntimeError: no such block"):
        surgeon.load(tmp_path)


def strided(**arguments: Any) -> nn.Module:
    return timm.create_model("resnet18", num_classes=4, output_stride=8, **arguments)


def not_strict() -> nn.Module:
    model = surgeon.create_model("test_vit", num_classes=4, img_size=64)
    model.patch_embed.dynamic_img_pad = True
    return model


def without_pool() -> nn.Module:
    model = surgeon.create_model("test_resnet", num_classes=4)
    model.maxpool = nn.Identity()
    return model


def with_dropout() -> nn.Module:
    model = timm.create_model("test_resnet", num_classes=4)
    model.drop_rate = 0.3
    model.layer1.append(nn.Dropout(0.5))
    return model


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (strided, r"'layer3\.0\.conv1': .*stride=\(2, 2\).* there, .*stride=\(1, 1\).* here"),
        (without_pool, r"'maxpool': MaxPool2d.* there, Identity\(\) here"),
        (not_strict, r"'patch_embed\.dynamic_img_pad': False there, True here"),
        (with_dropout, r"'layer1\.1': none there, Dropout\(p=0\.5.* here"),
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
    model = surgeon.create_model("test_resnet", num_classes=4)
    kept = model.forward_features
    model.forward_features = lambda x: kept(x.flip(-1))
    surgeon.save(model, tmp_path)
    with pytest.raises(surgeon.LoadError, match=r"builds another model: operation 1: .*flip"):
        surgeon.load(tmp_path)


def test_what_users_note_on_a_model_does_not_matter(tmp_path: Path) -> None:
    model = surgeon.create_model("test_resnet", "spd", num_classes=4).double()
    model.epoch, model.best, model.names = 3, 0.97, ["a", "b"]
    model.set_grad_checkpointing()
    assert torch.equal(saved(model, tmp_path)(X.double()), model(X.double()))


def test_asking_who_built_it_changes_nothing(tmp_path: Path) -> None:
    model = stir(surgeon.create_model("test_resnet", "spd", num_classes=4))
    leaves_no_trace(model, lambda m: surgeon.save(m, tmp_path))
