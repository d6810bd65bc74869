"""GAP heads: the paper's counts, what is tapped and pooled, what learns, timm's protocol, and what is refused."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import surgeon
from tests.contracts import Snapshot, images, operate, relative, run, stir, undone
from tests.zoo import PlainNet

POOLS = ["features.4", "features.9", "features.16", "features.23", "features.30"]  # the five max-pools of VGG-16
X = images(64)


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_papers_counts() -> None:
    """160 classes on 256x256: the flattened head has 5,243,040, one depth 82,080, five depths 235,680."""
    with torch.device("meta"):
        model = timm.create_model("vgg16", num_classes=160)
    convs = params(model.features)
    assert 8 * 8 * 512 * 160 + 160 == 5_243_040
    assert surgeon.plan(model, "gap", 256).params[1] == convs + 82_080 == 14_796_768
    assert surgeon.plan(model, {"gap": {"depths": POOLS}}, 256).params[1] == convs + 235_680


def test_by_hand() -> None:
    model = stir(timm.create_model("vgg11", num_classes=4).double().eval())
    seen: dict[str, torch.Tensor] = {}
    for name in ("features.2", "features.10"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, o, n=name: seen.update({n: o.mean((2, 3))}))
    last = model.forward_features(X).mean((2, 3)).detach()
    for name in seen:
        model.get_submodule(name)._forward_hooks.clear()
    operate(model, {"gap": {"depths": ["features.10", "features.2", "last"]}}, 64)
    pooled = torch.cat([seen["features.10"], seen["features.2"], last], 1).detach()
    head = model.get_classifier()
    assert relative(head(pooled).detach(), run(model, X)) < 1e-12
    assert "pre_logits" in surgeon.record(model).changes[0].reason and isinstance(model.pre_logits, nn.Identity)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"])
def test_the_answer_does_not_depend_on_where_a_map_lies(name: str) -> None:
    """The new head answers the same for features whose positions are permuted."""
    size = {"img_size": 64} if "swin" in name else {}
    model = operate(stir(timm.create_model(name, num_classes=5, **size).double().eval()), "gap", 64)
    features = torch.rand_like(model.forward_features(X).detach())
    axes = (1, 2) if "swin" in name else (2, 3)
    assert relative(run_head(model, features), run_head(model, features.flip(axes))) < 1e-12
    assert relative(run_head(model, features), run_head(model, features.flip(0))) > 1e-6


@torch.no_grad()
def run_head(model: Any, features: torch.Tensor) -> torch.Tensor:
    return model.forward_head(features)


def test_the_classifier_alone_learns() -> None:
    model = stir(timm.create_model("resnet18", num_classes=5)).train()
    operate(model, {"gap": {"depths": [1, 2, 3, 4]}}, 64)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.train().parameters(), 0.1, weight_decay=0.1)
    model(images(64, dtype=torch.float32)).square().sum().backward()
    optimizer.step()
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {"fc.weight", "fc.bias"}


def test_a_trainable_backbone_learns_through_every_depth() -> None:
    model = stir(timm.create_model("resnet18", num_classes=5)).train()
    operate(model, {"gap": {"depths": [1, "last"], "freeze": False}}, 64)
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model.fc.weight[:, 64:].zero_()  # only the first depth counts
    model(images(64, dtype=torch.float32)).square().sum().backward()
    assert model.layer1[0].conv1.weight.grad.abs().sum() > 0 and model.layer4[0].conv1.weight.grad.abs().sum() == 0


def test_protocol_copies_and_undo(tmp_path: Any) -> None:
    model = stir(surgeon.create_model("resnet18", num_classes=5).double().eval())
    before = Snapshot.of(model)
    operate(model, {"gap": {"depths": [2, "last"]}}, 64)
    assert model.head_hidden_size == 640 and model.num_features == 512
    y = run(model, X)
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, X), y) and torch.equal(run(twin, X.flip(0)), y.flip(0))
    assert torch.equal(run(surgeon.load(surgeon.save(model, tmp_path)), X), y)
    twin.reset_classifier(3)
    assert run(twin, X).shape == (2, 3) and twin.fc.in_features == 640
    with pytest.raises(surgeon.RefusedError, match="op 'gap' averages"):
        twin.reset_classifier(3, "max")
    exported = torch.export.export(model, (X,)).module()
    assert relative(exported(X).detach(), y) < 1e-12
    undone(before, surgeon.undo(model))


def test_forward_head_alone_says_what_it_needs() -> None:
    model = operate(timm.create_model("resnet18", num_classes=5).eval(), {"gap": {"depths": [1, "last"]}}, 64)
    with pytest.raises(surgeon.RefusedError, match=r"'layer1\.1' has pooled nothing yet"):
        copy.deepcopy(model).forward_head(torch.rand(1, 512, 2, 2))


@pytest.mark.parametrize(
    ("build", "settings", "words"),
    [
        (PlainNet, {}, "needs a timm classifier"),
        (lambda: timm.create_model("resnet18", num_classes=0), {}, "has taken away"),
        (lambda: timm.create_model("test_vit"), {}, r"depth 'last' holds \(\d+, \d+\), no map to pool"),
        (lambda: timm.create_model("resnet18"), {"depths": [9]}, "depth 9 is none of the 5 entries of feature_info"),
        (lambda: timm.create_model("resnet18"), {"depths": ["layer9"]}, "the model has no module 'layer9'"),
        (lambda: timm.create_model("resnet18"), {"depths": ["fc"]}, "answers no tensor on the way"),
    ],
)
def test_refused_with_the_reason(build: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(surgeon.RefusedError, match=words):
        surgeon.apply(build(), {"gap": settings}, 160 if r"\d" in words else 64)


@pytest.mark.parametrize(("depths", "words"), [([], "is empty"), ([1, 1], "names one twice")])
def test_settings_that_are_none(depths: list[int], words: str) -> None:
    with pytest.raises(surgeon.RecipeError, match=words):
        surgeon.plan(PlainNet(), {"gap": {"depths": depths}}, 64)
