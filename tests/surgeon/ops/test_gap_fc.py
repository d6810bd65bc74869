"""GAP+FC: where the map is pooled, what becomes of the convs behind, the paper's counts, and what is refused."""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.ops.point_conv import point_conv
from tests.contracts import images, operate, relative, rewritten, run, stir
from tests.zoo import FAMILIES, PlainNet, Wrap

X = images(64)


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "last", "expected"),
    [  # Table 2 of the paper prints 23.46M for one block of ResNet-50, 52.85M for five of ResNet-152
        ("resnet50", 1, 23_459_880),
        ("resnet50", "6%", 23_459_880),
        ("resnet50", "31%", 18_217_000),
        ("resnet50", "56%", 16_119_848),
        ("resnet50", "81%", 15_595_560),
        ("resnet50", "100%", 15_497_256),
        ("resnet152", 5, 52_852_776),
        ("resnet152", "10%", 52_852_776),
    ],
)
def test_counts_of_table_2(name: str, last: Any, expected: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    record = surgeon.plan(model, {"gap_fc": {}, "select": {"last": last}})
    assert record.params == (params(model), expected)


def test_both_branches_of_the_block_see_one_position() -> None:
    model = operate(stir(timm.create_model("resnet18", num_classes=4).double().eval()), GAP_LAST, 64)
    seen: dict[str, Any] = {}
    for name in ("layer4.1.conv1", "layer4.0.conv2", "layer4.1.act2", "layer4.0.downsample.0", "layer4.0.conv1"):
        model.get_submodule(name).register_forward_hook(lambda _m, i, _o, n=name: seen.update({n: i[0].shape[2:]}))
    run(model, X)
    assert {tuple(size) for size in seen.values()} == {(1, 1)} and len(seen) == 5
    assert model.layer4[0].downsample[0].stride == (1, 1) and model.layer3[1].conv2.kernel_size == (3, 3)


GAP_LAST = {"gap_fc": {}, "select": {"last": 2}}


def test_by_hand() -> None:
    """A plain net, pooled before its block: the same as mean, sums of taps and no strides, written out."""
    net = stir(PlainNet().double().eval())
    after = operate(copy.deepcopy(net), {"gap_fc": {}, "select": {"last": 1}}, 64)
    block = net.block
    x = net.pool(net.stem(X)).mean((2, 3))

    def point(conv: nn.Conv2d, x: Tensor) -> Tensor:
        return x @ conv.weight.sum((2, 3)).T + conv.bias

    y = point(block.conv1, x)[:, :, None, None]
    y = point(block.conv2, F.relu(block.norm1(y))[:, :, 0, 0])
    expected = net.head(F.relu(y + point(block.downsample, x)))
    assert relative(expected.detach(), run(after, X)) < 1e-12
    assert relative(run(net, X), run(after, X)) > 1e-3


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [3, (1, 5), 4, 7])
def test_the_sum_of_taps_is_exact_on_constant_maps(kernel: Any, groups: int) -> None:
    conv = nn.Conv2d(4, 8, kernel, groups=groups, dilation=2).double()
    constant = torch.rand(2, 4, 1, 1, dtype=torch.float64)
    answers = conv(constant.expand(2, 4, 20, 20))
    assert relative(answers[..., :1, :1].detach(), point_conv(conv)(constant).detach()) < 1e-14
    assert relative(answers[..., :1, :1].detach(), point_conv(conv, "center")(constant).detach()) > 1e-3


def test_the_center_tap_and_fresh_weights() -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1)
    assert torch.equal(point_conv(conv, "center").weight[..., 0, 0], conv.weight[..., 1, 1])
    first, again, other = (point_conv(conv, "fresh", seed).weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    x = torch.rand(2, 4, 1, 1)
    assert torch.allclose(conv(x), point_conv(conv, "center")(x), atol=1e-6)


def test_standardised_convs_start_from_the_kernel_they_compute_with() -> None:
    model = stir(timm.create_model("nf_regnet_b0", num_classes=4).double().eval())
    conv = (
        model.get_submodule("stages.3.0.conv2.conv")
        if False
        else next(m for m in model.modules() if type(m).__name__ == "ScaledStdConv2d" and m.kernel_size == (3, 3))
    )
    constant = torch.rand(1, conv.in_channels, 1, 1, dtype=torch.float64)
    answers = conv(constant.expand(-1, -1, 9, 9))
    assert relative(answers[..., 2:3, 2:3].detach(), point_conv(conv)(constant).detach()) < 1e-12


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenetv3_small_050",
        "tf_efficientnet_b0",
        "convnext_atto",
        "regnetx_002",
        "nf_regnet_b0",
        "repvgg_a0",
        "ghostnet_050",
    ],
)
@pytest.mark.parametrize("last", [1, "50%"])
def test_families(name: str, last: Any) -> None:
    entry = next(entry for entry in FAMILIES if entry.name == name)
    model = operate(stir(entry.build().double()), {"gap_fc": {}, "select": {"last": last}}, entry.size)
    assert len(rewritten(model)) > 1 and surgeon.record(model).count("refused") == 0
    assert run(model, images(64)).shape == run(model, images((77, 90))).shape == (2, 10)
    info = [entry["reduction"] for entry in model.feature_info]
    assert info == sorted(info) and (info[-1] == 64 or (name, last) == ("ghostnet_050", 1))  # its last unit is no stage


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("vit_tiny_patch16_224", {}, r"reads features \(197, 192\) at 'blocks.11', no maps"),
        ("swin_tiny_patch4_window7_224", {}, r"reads features \(7, 7, 768\) at 'layers.3.blocks.1', no maps"),
        ("densenet121", {}, r"one tensor alone passes before 'features.transition3.pool': set at: features.trans"),
        ("inception_v3", {}, r"one tensor alone passes before 'Mixed_7c': set at: Mixed_7c"),
        ("resnet18", {"num_classes": 0, "global_pool": ""}, "no logits"),
        ("resnet18", {"features_only": True}, "no logits"),
    ],
)
def test_refused_with_the_reason(name: str, arguments: dict[str, Any], words: str) -> None:
    model = timm.create_model(name, **arguments)
    with pytest.raises(surgeon.RefusedError, match=words):
        surgeon.apply(model, {"gap_fc": {}, "select": {"last": 1}})


@pytest.mark.parametrize(
    ("name", "at", "rewritten_count"),
    [("densenet121", "features.transition3.pool", 17), ("inception_v3", "Mixed_7c", 7)],
)
def test_at_names_the_edge(name: str, at: str, rewritten_count: int) -> None:
    model = stir(timm.create_model(name, num_classes=10).double().eval())
    size = 107 if name == "inception_v3" else 64
    operate(model, {"gap_fc": {"at": at}, "select": {"last": 1}}, size)
    assert len(rewritten(model)) == rewritten_count and run(model, images(size)).shape == (2, 10)


def test_a_stride_one_average_pool_is_no_ninth() -> None:
    def build() -> nn.Module:
        return Wrap(lambda m, x: F.avg_pool2d(m.conv(x), 3, 1, 1), 4, conv=nn.Conv2d(3, 4, 3, 2, 1)).double().eval()

    model = operate(stir(build()), "gap_fc", 64)
    assert {c.path for c in rewritten(model)} == {"conv", ":avg_pool2d:0"}
    point = model.conv.weight[..., 0, 0]
    expected = model.head(X.mean((2, 3)) @ point.T + model.conv.bias)
    assert relative(expected.detach(), run(model, X)) < 1e-12


def test_deeper_later_and_taken_back() -> None:
    model = stir(timm.create_model("resnet18", num_classes=4).double().eval())
    before, direct = run(model, X), operate(copy.deepcopy(model), GAP_LAST, 64)
    operate(model, {"gap_fc": {}, "select": {"last": 1}}, 64)
    operate(model, GAP_LAST, 64)
    assert relative(run(direct, X), run(model, X)) < 1e-12
    assert torch.equal(run(surgeon.undo(model), X), before)
