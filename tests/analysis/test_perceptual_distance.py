"""The distance as defined, its controls, its taps, and its files."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import surgeon
from analysis.perceptual_distance import PerceptualDistance
from analysis.perceptual_taps import Tap, find_taps
from surgeon.errors import AnalysisError, LoadError, SurgeonError
from tests.contracts import Snapshot


def small(padding: str = "circular", stride: int = 1) -> nn.Sequential:
    """Two convs and pointwise nonlinearities."""
    torch.manual_seed(1)
    convs = [nn.Conv2d(a, b, 3, stride, 1, padding_mode=padding) for a, b in ((3, 6), (6, 8))]
    return nn.Sequential(convs[0], nn.GELU(), convs[1], nn.Tanh()).double()


def of_small(form: str, padding: str = "circular", stride: int = 1) -> PerceptualDistance:
    distance = PerceptualDistance(small(padding, stride), ["1", "3"], form=form, input_size=(3, 8, 8))
    with torch.no_grad():
        distance.raw.copy_(torch.randn(distance.channels, dtype=torch.float64))
    return distance


def pictures(count: int = 3, *size: int) -> Tensor:
    return torch.rand(count, 3, *(size or (12, 10)), dtype=torch.float64)


def by_hand(distance: PerceptualDistance, a: Tensor, b: Tensor) -> list[float]:
    """Both forms in plain loops of numpy."""
    weights, found = np.log1p(np.exp(distance.raw.detach().numpy())), []
    net = small()
    for one, other in zip(a, b, strict=True):
        maps = [[net[: end + 1](image[None])[0].detach().numpy() for end in (1, 3)] for image in (one, other)]
        start, total, gaps = 0, 0.0, []
        for f, g in zip(*maps, strict=True):
            w = weights[start : start + len(f)]
            start += len(f)
            f_unit, g_unit = (m / (np.sqrt((m**2).sum(0)) + distance.eps) for m in (f, g))
            squares = [
                (w * (f_unit[:, y, x] - g_unit[:, y, x]) ** 2).sum() for y in range(12) for x in range(f.shape[2])
            ]
            total += np.mean(squares)
            gaps += list(w * (f.mean((1, 2)) - g.mean((1, 2))))
        found.append(total if distance.form == "lpips" else float(np.sqrt(np.mean(np.square(gaps)))))
    return found


@pytest.mark.parametrize("form", ["lpips", "gap"])
def test_is_what_its_definition_says(form: str) -> None:
    distance, a, b = of_small(form), pictures(), pictures()
    assert distance(a, b).tolist() == pytest.approx(by_hand(distance, a, b), rel=1e-12)
    with torch.no_grad():
        distance.raw[0] += 1
    assert distance(a, b).tolist() == pytest.approx(by_hand(distance, a, b), rel=1e-12)  # and so are other weights


@pytest.mark.parametrize("form", ["lpips", "gap"])
def test_zero_to_itself_symmetric_and_never_below(form: str) -> None:
    distance = of_small(form)
    a, b = pictures(8), pictures(8)
    assert distance(a, a.clone()).tolist() == [0.0] * 8
    assert torch.equal(distance(a, b), distance(b, a)) and distance(a, b).min() > 0
    with torch.no_grad():
        distance.raw.copy_(torch.linspace(-800, 800, distance.channels))  # whatever training makes of it
    assert distance.weights.min() >= 0 and distance(a, b).min() >= 0


def test_gap_form_does_not_see_circular_shifts_of_an_equivariant_net() -> None:
    a = pictures(4)
    moved = a.roll((3, 4), (2, 3))
    other = of_small("gap")(a, a.flip(0))
    assert (of_small("gap")(a, moved) / other).max() < 1e-14
    assert (of_small("lpips")(a, moved) / of_small("lpips")(a, a.flip(0))).min() > 1e-2
    assert (of_small("gap", "zeros")(a, moved) / other).max() > 1e-3  # a border, or a stride, is seen
    assert (of_small("gap", stride=2)(a, moved) / other).max() > 1e-3


@pytest.mark.parametrize("form", ["lpips", "gap"])
def test_gradients_reach_images_and_weights_only(form: str) -> None:
    distance = PerceptualDistance(timm.create_model("test_resnet"), form=form)
    a = torch.rand(2, 3, 32, 32, requires_grad=True)
    distance(a, torch.rand(2, 3, 32, 32)).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all() and a.grad.abs().sum() > 0
    assert [name for name, p in distance.named_parameters() if p.requires_grad] == ["raw"]
    assert all(p.grad is None for p in distance.backbone.parameters())
    distance.zero_grad()
    distance(a, a).sum().backward()  # at 0 the root has no gradient, and it stays finite
    assert a.grad.isfinite().all() and distance.raw.grad.isfinite().all()


def test_equals_timms_own_features() -> None:
    model = timm.create_model("test_resnet").eval()
    twin = timm.create_model("test_resnet", features_only=True).eval()
    twin.load_state_dict(model.state_dict(), strict=False)
    a, b = torch.rand(2, 2, 3, 48, 40)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        total = 0
        for f, g in zip(twin((a - mean) / std), twin((b - mean) / std), strict=True):
            total = total + (f / (f.norm(dim=1)[:, None] + 1e-6) - g / (g.norm(dim=1)[:, None] + 1e-6)).pow(2).sum(
                1
            ).mean((1, 2))
        assert torch.allclose(PerceptualDistance(model)(a, b), total, rtol=1e-5)
        assert not torch.allclose(PerceptualDistance(model, mean=0.0, std=1.0)(a, b), total, rtol=1e-3)


def test_the_model_is_never_touched() -> None:
    model = timm.create_model("test_resnet").train()
    images = torch.rand(2, 3, 32, 32)
    before = Snapshot.of(model)
    distance = PerceptualDistance(model)
    with torch.no_grad():
        value = distance(images, images.flip(0))
        assert torch.equal(distance.train()(images, images.flip(0)), value)  # the network stays in evaluation mode
    assert not any(part.training for part in distance.backbone.modules())
    assert before.differences(Snapshot.of(model)) == []
    kept = Snapshot.of(distance)
    with torch.no_grad():
        model.fc.weight.add_(1)
        model.layer1[0].conv1.weight.add_(1)
        assert torch.equal(distance(images, images.flip(0)), value)  # nor does it follow the model
    with pytest.raises(AnalysisError):
        distance(images[:, :1], images)
    assert kept.differences(Snapshot.of(distance)) == []


TAPS: dict[str, tuple[dict[str, Any], list[tuple[Any, ...]]]] = {
    "test_resnet": ({}, [("act1", 32), ("layer1", 32), ("layer2", 48), ("layer3", 192), ("layer4", 96)]),
    "test_vit": ({}, [(f"blocks.{i}", 64, True) for i in range(6)]),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)},
        [("layers.0", 24, True), ("layers.1", 48, True)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAPS)
def test_taps_of_timms_nets(name: str) -> None:
    arguments, wanted = TAPS[name]
    model = timm.create_model(name, **arguments)
    found = find_taps(model.eval(), None)
    assert found == [Tap(*each) for each in wanted]
    distance = PerceptualDistance(model, form="gap")
    size = model.pretrained_cfg["input_size"][1:] if not arguments else (64, 64)
    assert distance(torch.rand(1, 3, *size), torch.rand(1, 3, *size)).item() > 0


class Square(nn.Module):
    """Maps as wide as they have channels, of which the last axis is the one meant, as of Swin."""

    output_fmt = "NHWC"

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(3), nn.Identity()
        self.feature_info = [{"module": "norm", "num_chs": 3, "reduction": 1}]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.permute(0, 2, 3, 1)))


def test_channels_where_both_axes_may_hold_them() -> None:
    net, size = Square().eval(), (3, 3, 3)
    for taps in (None, ["norm"], ["head"], [Tap("norm", 3, last=True)]):
        assert [tap.last for tap in find_taps(net, taps, size)] == [True]
    net.output_fmt = "NCHW"
    assert not find_taps(net, None, size)[0].last
    image = torch.rand(1, 3, 3, 3)
    wanted = functional.layer_norm(image.permute(0, 2, 3, 1), (3,)).mean((1, 2))
    distance = PerceptualDistance(net, [Tap("norm", 3, last=True)], form="gap", input_size=size)
    assert torch.allclose(distance.features(image)[0], wanted, atol=1e-6)


def test_a_tap_says_where_its_channels_are(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2)).eval()
    for last, channels in ((False, 4), (True, 64)):
        distance = PerceptualDistance(net, [Tap("1", channels, last=last)], input_size=(3, 8, 8))
        assert distance.taps == (Tap("1", channels, last),)
        distance.save(tmp_path)
        assert PerceptualDistance.load(tmp_path, net, input_size=(3, 8, 8)).taps == distance.taps
        with pytest.raises(
            AnalysisError, match=rf"answers \(1, 4, 64\), and Tap\(channels={channels}, last={not last}\)"
        ):
            find_taps(net, [Tap("1", channels, last=not last)], (3, 8, 8))
    assert find_taps(net, ["1"], (3, 8, 8)) == [Tap("1", 64, True)]  # of tokens, unless a tap says otherwise


def test_taps_of_vgg_lie_before_its_pools_as_in_lpips() -> None:
    with torch.device("meta"):
        model = timm.create_model("vgg11")
    paths = [entry["module"] for entry in model.feature_info]
    assert [type(model.get_submodule(path)).__name__ for path in paths] == ["ReLU"] * 5 + ["MaxPool2d"]


def test_taps_of_a_plain_net_are_the_ends_of_its_stages() -> None:
    from tests.zoo import PlainNet

    found = find_taps(PlainNet().eval(), None, (3, 32, 32))
    assert [tap.channels for tap in found][:2] == [8, 12] and all("head" not in tap.path for tap in found)


class Listing(nn.Module):
    """Says of its features what timm's nets do; one of them is a list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pair = nn.Conv2d(3, 4, 1), Pair()
        names = {"conv": 4, "pair": 4, "gone": 4}
        self.feature_info = [{"module": name, "num_chs": count, "reduction": 1} for name, count in names.items()]

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.conv(x))[0]


def test_features_that_are_no_maps_are_left_out_unless_named() -> None:
    assert find_taps(Listing(), None, (3, 8, 8)) == [Tap("conv", 4)]
    with pytest.raises(AnalysisError, match="tap 'pair' of Listing: no tensor of features"):
        find_taps(Listing(), ["pair"], (3, 8, 8))


def test_before_and_after_surgery() -> None:
    plain, operated = timm.create_model("test_resnet"), timm.create_model("test_resnet")
    operated.load_state_dict(plain.state_dict())
    surgeon.apply(operated, "spd")
    a, b = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        before, after = (PerceptualDistance(model)(a, b).item() for model in (plain, operated))
    assert after == pytest.approx(before, rel=1e-4)  # spd is the same function


def test_ends_with_the_last_tap_so_that_any_size_will_do() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    distance = PerceptualDistance(net, ["1"], input_size=(3, 8, 8))
    assert distance(torch.rand(1, 3, 20, 31), torch.rand(1, 3, 20, 31)).item() > 0
    with pytest.raises(AnalysisError, match=r"cannot take images of \(1, 3, 20, 31\): .*; give images of another size"):
        PerceptualDistance(net, ["1", "3"], input_size=(3, 8, 8))(*torch.rand(2, 1, 3, 20, 31))
    resized = PerceptualDistance(net, ["1", "3"], input_size=(3, 8, 8), size=8)
    assert resized(*torch.rand(2, 1, 3, 20, 31)).item() > 0


def test_activations_in_place_do_not_spoil_a_tap() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    a, b = torch.rand(2, 1, 3, 5, 5, requires_grad=True)
    found = PerceptualDistance(net, ["0", "2"], form="gap", input_size=(3, 5, 5))
    found(a, b).sum().backward()
    f, g = (net[0](x).mean((2, 3)) for x in (a, b))
    assert torch.allclose(found.features(a)[0], f) and not torch.allclose(f, g)


class Twice(nn.Module):
    """One activation that runs twice, a branch that never runs, and an answer that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.never = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(3, 4, 1)
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.act(self.conv(self.act(x))))[0]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"taps": ["act"]}, "tap 'act' of Twice: run 2 times in a pass; name another module"),
        ({"taps": ["never"]}, "tap 'never' of Twice: run 0 times"),
        ({"taps": ["pair"]}, "tap 'pair' of Twice: no tensor of features"),
        ({"taps": ["cnv"]}, "Twice has no module 'cnv' to tap; list them"),
        ({"taps": [""]}, "has no module ''"),
        ({"taps": []}, "taps are []; name one or several modules"),
        ({"taps": ["conv", "conv"]}, "each once"),
        ({"form": "lpip"}, "form is 'lpip'; it is one of lpips, gap"),
        ({"eps": 0}, "eps is 0; give a small number"),
        ({"mean": 0.5}, "one of mean and std is missing"),
        ({"mean": 0.5, "std": 0.0}, "std above 0"),
        ({"size": (3, -1)}, "size is (3, -1)"),
        ({"input_size": (4, 8, 8)}, "cannot take an image of (4, 8, 8)"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SurgeonError) as caught:
        PerceptualDistance(Twice(), **{"taps": ["conv"], "input_size": (3, 8, 8), **arguments})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 8, 8), "got torch.float32 (3, 8, 8); give images (N, C, H, W)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        ("photo.png", "got str"),
        (torch.zeros(1, 1, 8, 8), "images have 1 channels, mean and std 3 and 3 values"),
    ],
)
def test_bad_images(images: Any, words: str) -> None:
    distance = PerceptualDistance(timm.create_model("test_resnet"))
    with pytest.raises(AnalysisError) as caught:
        distance(images, images)
    assert words in str(caught.value)


def test_images_of_two_sizes() -> None:
    distance = of_small("lpips")
    with pytest.raises(AnalysisError, match="differ in size"):
        distance(pictures(1, 8, 8), pictures(1, 8, 9))


def test_saved_and_read_back(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    distance = PerceptualDistance(model, ["layer1", "layer3"], form="gap", size=(40, 32))
    with torch.no_grad():
        distance.raw.normal_()
    distance.made = {"data": "mine", "pearson": 0.9}
    assert distance.save(tmp_path / "d") == tmp_path / "d"
    again = PerceptualDistance.load(tmp_path / "d", model)
    images = torch.rand(2, 2, 3, 50, 50)
    with torch.no_grad():
        assert torch.equal(again(*images), distance(*images))
    assert again.about() == distance.about() and again.size == (40, 32)
    assert sorted(p.suffix for p in (tmp_path / "d").iterdir()) == [".json", ".safetensors"]
    about = json.loads((tmp_path / "d" / "perceptual.json").read_text())
    assert about["made"] == distance.made and about["backbone"]["architecture"] == "test_resnet"
    distance.save(tmp_path / "d")  # once more: no file is left behind
    assert len(list((tmp_path / "d").iterdir())) == 2


@pytest.mark.slow
def test_saved_with_its_operated_network(tmp_path: Path) -> None:
    model = surgeon.create_model("test_resnet", "spd")
    distance = PerceptualDistance(model)
    distance.save(tmp_path, backbone=True)
    again = PerceptualDistance.load(tmp_path)
    assert surgeon.record(again.backbone).count("rewritten") == 8
    images = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(*images), distance(*images))


def test_taps_before_a_module_come_back(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    distance = PerceptualDistance(net, [Tap("2", 4, before=True)], input_size=(3, 8, 8))
    distance.save(tmp_path)
    assert (
        PerceptualDistance.load(tmp_path, net, input_size=(3, 8, 8)).taps
        == distance.taps
        == (Tap("2", 4, False, True),)
    )


def spoil(folder: Path, what: str) -> None:
    weights, about = next(folder.glob("*.safetensors")), folder / "perceptual.json"
    if what == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif what == "weights gone":
        weights.unlink()
    elif what == "no json":
        about.write_text("{")
    elif what.startswith("lacks"):
        about.write_text(json.dumps({k: v for k, v in json.loads(about.read_text()).items() if k != "taps"}))
    elif what.startswith("edited"):
        _, key, *value = what.split()
        content = json.loads(about.read_text())
        content[key] = [{**content["taps"][0], "deep": 1}] if key == "taps" else value
        about.write_text(json.dumps(content))
    else:
        about.unlink()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weights cut", "is cut short or was edited"),
        ("weights gone", "it belongs to perceptual.json"),
        ("no json", "is no JSON"),
        ("lacks taps", "'taps' is missing or of another kind"),
        ("edited taps", "'taps' is missing or of another kind"),
        ("edited mean no number", "'mean' is missing or of another kind"),
        ("edited std", "does not fit this ResNet: PerceptualDistance: mean is"),
        ("gone", "name a folder written by distance.save"),
    ],
)
def test_damaged_files(tmp_path: Path, what: str, words: str) -> None:
    model = timm.create_model("test_resnet")
    PerceptualDistance(model, ["layer1"]).save(tmp_path)
    spoil(tmp_path, what)
    with pytest.raises(LoadError, match=words):
        PerceptualDistance.load(tmp_path, model)


def test_weights_of_another_network(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    PerceptualDistance(model, ["layer1"]).save(tmp_path)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.bias.add_(1)
    with pytest.raises(LoadError, match="learned on a test_resnet with other values than this ResNet has"):
        PerceptualDistance.load(tmp_path, other)
    assert PerceptualDistance.load(tmp_path, other, strict=False).channels == 32
    with pytest.raises(LoadError, match="holds weights only; pass the network"):
        PerceptualDistance.load(tmp_path)
    wider = nn.Sequential()
    wider.add_module("layer1", nn.Conv2d(3, 33, 1))
    with pytest.raises(LoadError, match=r"does not fit this Sequential: tap 'layer1' .* axis 1 has 33; correct it"):
        PerceptualDistance.load(tmp_path, wider, input_size=(3, 8, 8))


@pytest.mark.slow
def test_a_detector() -> None:
    ultralytics = pytest.importorskip("ultralytics")
    model = ultralytics.YOLO("yolo11n.yaml")
    images = torch.rand(2, 1, 3, 64, 96)
    before = Snapshot.of(model.model)
    distance = PerceptualDistance(model, ["model.2", "model.4"], input_size=64)
    assert distance(*images).item() > 0
    assert before.differences(Snapshot.of(model.model)) == []
