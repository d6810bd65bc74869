"""FGSM and PGD: right in closed form, within epsilon to the last bit, averaged over draws, and the model put back."""

import contextlib
import copy
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import surgeon
from analysis.attack_result import Adversarial
from analysis.attack_settings import scale
from analysis.attacking import adversarial
from analysis.attacks import Batch, Strength, attack, cross_entropy
from surgeon.errors import AnalysisError
from tests.contracts import Snapshot

pytest.importorskip("captum.robust")
MEAN, STD = 0.3, 0.37
Batches = list[tuple[Tensor, Tensor]]


def linear(pixels: int, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


def pixels_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Random ones, and some at the very ends."""
    drawn = torch.rand(shape, dtype=dtype)
    return torch.where(torch.rand(shape) < 0.1, drawn.round(), drawn)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Batches]:
    """A small net that knows digits, of blocks with identity skips, and 200 images it has not seen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bunch = load_digits()
    images = (torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None] - MEAN) / STD
    targets = torch.tensor(bunch.target)
    model = surgeon.create_model("blocknet_42", width=8, in_chans=1, blocks=2)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(6):
        for chosen in torch.randperm(1500).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), targets[chosen]).backward()
            optimizer.step()
    optimizer.zero_grad()
    torch.set_num_threads(threads)
    return model, [(images[i : i + 20], targets[i : i + 20]) for i in range(1500, 1700, 20)]


def by_attack(found: Adversarial, key: str = "accuracy") -> dict[str, Any]:
    return {row["attack"]: row[key] for row in found.rows}


# right


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fgsm_on_a_linear_model_in_closed_form(dtype: torch.dtype) -> None:
    model = linear(12).to(dtype)
    pixels, targets = pixels_of((40, 3, 2, 2), dtype), torch.randint(3, (40,))
    mean, std = torch.tensor([0.5, 0.4, 0.1], dtype=dtype), torch.tensor([0.2, 0.3, 0.4], dtype=dtype)
    images = (pixels - mean[:, None, None]) / std[:, None, None]
    batch = Batch(images, pixels, targets, std[:, None, None])
    wrong = torch.softmax(model(images), 1) - functional.one_hot(targets, 3)
    slope = (wrong @ model[1].weight).sign().reshape(pixels.shape)
    expected = (pixels + 0.125 * slope).clamp(0, 1)
    changed = attack(model, batch, "fgsm", Strength(0.125), cross_entropy)
    assert torch.allclose(changed, expected, rtol=0, atol=torch.finfo(dtype).eps)
    right = (model((expected - mean[:, None, None]) / std[:, None, None]).argmax(1) == targets).double().mean()
    settings: dict[str, Any] = {"epsilon": 0.125, "mean": mean.tolist(), "std": std.tolist()}
    found = adversarial(model, [(images, targets)], **settings)
    assert by_attack(found)["fgsm"] == float(right)
    in_units_of_the_model = (images + 0.125 * slope) * std[:, None, None] + mean[:, None, None]
    assert not torch.allclose(in_units_of_the_model.clamp(0, 1), expected, atol=0.01)  # the trap


def test_a_step_does_not_stop_at_small_gradients() -> None:
    import captum.robust

    model = linear(4, 2)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[40.0, -40, 40, -40], [-40.0, 40, -40, 40]]))
    pixels, targets = torch.tensor([[[[0.6, 0.4], [0.7, 0.3]]]]), torch.tensor([0])
    batch = Batch(pixels, pixels, targets, torch.ones(1, 1, 1))
    changed = attack(model, batch, "fgsm", Strength(0.25), cross_entropy)
    assert torch.allclose(changed.flatten(), torch.tensor([0.35, 0.65, 0.45, 0.55]))
    with pytest.warns(UserWarning, match="did not already require gradients"):
        stock = captum.robust.FGSM(model, cross_entropy).perturb(pixels.clone(), 0.25, target=targets)
    assert torch.equal(stock, pixels)


def test_cross_entropy_is_that_of_torch_but_for_its_gradient() -> None:
    spread = torch.tensor([1.0, 10, 40, 80])[:, None]
    logits, targets = torch.rand(4, 5), torch.zeros(4, dtype=torch.int64)
    logits[:, :1] += spread  # the right class is ahead, by up to 80
    wanted = torch.softmax(logits.double(), 1)
    wanted[:, 0] = -wanted[:, 1:].sum(1)
    near = logits.clone().requires_grad_()
    losses = cross_entropy(near, targets)
    assert torch.allclose(losses, functional.cross_entropy(logits, targets, reduction="none"), atol=1e-5)
    (slope,) = torch.autograd.grad(losses.sum(), near)
    assert torch.allclose(slope.double(), wanted, rtol=1e-4, atol=0)
    (stock,) = torch.autograd.grad(functional.cross_entropy(near, targets, reduction="sum"), near)
    assert stock[-1, 0] == 0 != slope[-1, 0]
    behind = torch.tensor([[0.0, 100.0]])
    assert float(cross_entropy(behind, targets[:1])) == 100


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 2.0)])
@pytest.mark.parametrize("epsilon", [0.0, 8 / 255, 0.1, 1 / 3])
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_changes_stay_within_epsilon_and_bounds_exactly(name: str, epsilon: float, bounds: tuple[float, float]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        pixels, targets = pixels_of((8, 3, 4, 4)), torch.randint(3, (8,))
        batch = Batch(pixels, pixels, targets, torch.full((3, 1, 1), 0.5))
        strength = Strength(epsilon, 5, epsilon, bounds=bounds)
        changed = attack(linear(48), batch, name, strength, cross_entropy)
        far = (changed.double() - pixels.double()).abs()
        assert float(far.max()) <= epsilon and bounds[0] <= float(changed.min()) <= float(changed.max()) <= bounds[1]
        assert epsilon == 0 or float(far.max()) > 0.999999 * epsilon


@pytest.mark.parametrize("start", [True, False])
def test_l2_changes_have_the_length_asked_for(start: bool) -> None:
    pixels, targets = 0.4 + 0.2 * torch.rand(8, 3, 4, 4), torch.randint(3, (8,))
    model, batch = linear(48), Batch(pixels, pixels, targets, torch.ones(3, 1, 1))
    wrong = torch.softmax(model(pixels), 1) - functional.one_hot(targets, 3)
    slope = (wrong @ model[1].weight).reshape(pixels.shape).detach()
    one = attack(model, batch, "pgd", Strength(0.2, 1, 0.05, False, norm="L2"), cross_entropy) - pixels
    expected = 0.05 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    assert torch.allclose(one, expected, atol=1e-6)  # one step, along the gradient itself
    many = attack(model, batch, "pgd", Strength(0.2, 10, 0.05, start, norm="L2"), cross_entropy) - pixels
    lengths = many.flatten(1).norm(dim=1)
    assert float(lengths.max()) <= 0.2 * (1 + 1e-6) and float(lengths.min()) > 0.19


def test_epsilon_zero_changes_nothing(digits: tuple[nn.Module, Batches]) -> None:
    model, data = digits
    found = adversarial(model, data, epsilon=0, mean=MEAN, std=STD)
    assert len(set(by_attack(found).values())) == 1 and found.rows[0]["accuracy"] > 0.8
    assert [row["success_rate"] for row in found.rows] == [None, 0.0, 0.0]
    pixels, std = scale(model, MEAN, STD).pixels(data[0][0], (0, 1))
    batch = Batch(*(data[0][0], pixels, data[0][1]), std)
    for name in ("fgsm", "pgd"):
        changed = attack(model, batch, name, Strength(0.0), cross_entropy)
        assert torch.equal(batch.normalised(changed), data[0][0])


def test_pgd_is_at_least_as_strong_as_fgsm(digits: tuple[nn.Module, Batches]) -> None:
    model, data = digits
    found = adversarial(model, data, epsilon=0.1, mean=MEAN, std=STD)
    right = by_attack(found)
    assert right["pgd"] < right["fgsm"] < right["clean"] - 0.2
    with torch.no_grad():
        clean = torch.cat([model.eval()(x).argmax(1) == y for x, y in data])
    assert right["clean"] == float(clean.double().mean())
    for row in found.rows[1:]:  # the images that were wrong stay wrong, or nearly all of them
        assert row["success_rate"] == pytest.approx(1 - row["accuracy"] / right["clean"], abs=0.02)
    weak = adversarial(model, data, epsilon=0.01, mean=MEAN, std=STD)
    assert by_attack(weak)["pgd"] > right["pgd"] + 0.2


# networks that draw


class Taking(nn.Module):
    """Logits of one of several linear layers: the next at each pass."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(12) for _ in range(layers))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        answer: Tensor = self.layers[int(self.passes) % len(self.layers)](x)
        return answer


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_averaged_gradients_are_the_mean_of_single_ones(norm: Any) -> None:
    model, pixels, targets = Taking(3), torch.rand(6, 3, 2, 2), torch.randint(3, (6,))
    leaf = pixels.clone().requires_grad_()
    losses = sum(cross_entropy(layer(leaf), targets).sum() for layer in model.layers) / 3
    (slope,) = torch.autograd.grad(losses, leaf)
    batch = Batch(pixels, pixels, targets, torch.ones(3, 1, 1))
    strength = Strength(0.1, 1, 0.1, False, eot=3, norm=norm, bounds=(-9, 9))
    step = attack(model, batch, "pgd", strength, cross_entropy) - pixels
    unit = slope.sign() if norm == "Linf" else slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    assert torch.allclose(step, 0.1 * unit, atol=1e-6) and int(model.passes) == 3
    once = Strength(0.1, 1, 0.1, False, norm=norm, bounds=(-9, 9))
    assert not torch.allclose(attack(model, batch, "pgd", once, cross_entropy) - pixels, 0.1 * unit, atol=1e-3)


@pytest.mark.slow
def test_averaging_over_draws_finds_more_in_a_network_that_draws(digits: tuple[nn.Module, Batches]) -> None:
    model, data = copy.deepcopy(digits[0]), digits[1]
    surgeon.apply(model, {"stochastic": {"r": 4, "s": 1}}, (1, 8, 8))
    settings: dict[str, Any] = {"epsilon": 0.1, "steps": 5, "mean": MEAN, "std": STD, "repeats": 2}
    one, many = (adversarial(model, data, eot=eot, attacks="pgd", **settings) for eot in (1, 4))
    assert by_attack(many)["pgd"] < by_attack(one)["pgd"]
    assert min(by_attack(one, "sd_over_repeats").values()) > 0 and one.rows[0]["repeats"] == 2
    steady = adversarial(digits[0], data, attacks="fgsm", **settings)
    assert by_attack(steady, "sd_over_repeats") == {"clean": 0, "fgsm": 0}


def test_a_network_that_does_not_draw_does_not_care_for_averages(digits: tuple[nn.Module, Batches]) -> None:
    model, data = digits
    one, many = (adversarial(model, data[:2], eot=eot, mean=MEAN, std=STD) for eot in (1, 4))
    assert by_attack(one) == by_attack(many)


# nothing is left behind


def operated() -> nn.Module:
    """A net in mixed modes, with BatchNorm, random layers, a frozen layer and a gradient."""
    model = surgeon.create_model("test_resnet", [{"spatial_shuffle": {}}, {"stochastic": {"r": 2}}], num_classes=3)
    model.layer2.eval()
    next(model.parameters()).requires_grad_(False)
    weight = model.get_parameter("fc.weight")
    weight.grad = torch.ones_like(weight)
    return model.train()


def small() -> Batches:
    return [(torch.rand(2, 3, 32, 32) * 2 - 1, torch.tensor([0, 1])) for _ in range(2)]


class Breaking(list):  # type: ignore[type-arg]
    """Batches of which the second raises."""

    def __init__(self, batches: Batches, error: BaseException) -> None:
        super().__init__(batches)
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        yield self[0]
        raise self.error


def test_the_model_is_put_back() -> None:
    model, data = operated(), small()
    before, gradient = Snapshot.of(model), model.get_parameter("fc.weight").grad
    first = adversarial(model, data, steps=2, eot=2, repeats=2)
    assert before.differences(Snapshot.of(model)) == []
    for error in (RuntimeError("disk"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            adversarial(model, Breaking(data, error), steps=2)
        assert before.differences(Snapshot.of(model)) == []

    def failing(logits: Tensor, targets: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adversarial(model, data, loss=failing)
    assert before.differences(Snapshot.of(model)) == []
    kept = model.get_parameter("fc.weight").grad
    assert kept is gradient and bool((kept == 1).all())
    model.eval()(data[0][0])  # negative control: a pass by itself leaves a trace
    left = before.differences(Snapshot.of(model))
    assert any(key.endswith("steps bits") for key in left) and len(first.rows) == 3


def test_the_same_numbers_twice_and_others_with_another_seed(digits: tuple[nn.Module, Batches]) -> None:
    settings: dict[str, Any] = {"epsilon": 0.03, "steps": 2, "mean": MEAN, "std": STD}
    model, data = digits
    torch.manual_seed(1)
    first = adversarial(model, data, **settings)
    torch.manual_seed(2)
    assert adversarial(model, data, **settings).to_json() == first.to_json()
    alone = adversarial(model, data, attacks=("pgd",), **settings)
    assert by_attack(alone)["pgd"] == by_attack(first)["pgd"]
    targets, pixels = data[0][1], data[0][0] * STD + MEAN
    batch = Batch(data[0][0], pixels.clamp(0, 1), targets, torch.full((1, 1, 1), STD))
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        starts.append(attack(model, batch, "pgd", Strength(0.03, 1, 0.001), cross_entropy))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_no_gradients_are_computed(context: Any, digits: tuple[nn.Module, Batches]) -> None:
    model, data = digits
    expected = adversarial(model, data[:2], mean=MEAN, std=STD)
    with context():
        copied = [(x.clone(), y.clone()) for x, y in data[:2]]
        assert adversarial(model, copied, mean=MEAN, std=STD).rows == expected.rows


# rows and files


def test_rows(digits: tuple[nn.Module, Batches], tmp_path: Path) -> None:
    model, data = digits
    found = adversarial(model, data, epsilon=0.1, steps=4, max_images=50, mean=MEAN, std=STD)
    assert [(r["attack"], r["epsilon"], r["steps"], r["step_size"], r["eot"], r["images"]) for r in found.rows] == [
        ("clean", 0, 0, None, None, 50),
        ("fgsm", 0.1, 1, 0.1, 1, 50),
        ("pgd", 0.1, 4, 0.0625, 1, 50),
    ]
    for row in found.rows:
        exact = binomtest(round(row["accuracy"] * 50), 50).proportion_ci(method="wilson")
        assert (row["accuracy_low_95"], row["accuracy_high_95"]) == pytest.approx((exact.low, exact.high))
        assert row["sd_over_repeats"] is None
    content = json.loads(found.to_json(tmp_path / "a.json"))
    assert content["kind"] == "adversarial" and content["rows"] == found.rows
    assert content["settings"]["step_size"] == 0.0625 and content["settings"]["mean"] == [MEAN]
    assert "epsilon 25.5/255; right of 50 images: clean" in str(found)
    bars = found.figure().axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([100 * row["accuracy"] for row in found.rows])


def test_a_loss_may_be_one_number(digits: tuple[nn.Module, Batches]) -> None:
    model, data = digits
    each = adversarial(model, data[:2], mean=MEAN, std=STD)
    assert adversarial(model, data[:2], mean=MEAN, std=STD, loss=nn.CrossEntropyLoss()).rows == each.rows
    with pytest.raises(AnalysisError, match=r"loss answers \(20, 10\) for 20 images"):
        adversarial(model, data, mean=MEAN, std=STD, loss=lambda logits, targets: logits)


def test_mean_and_std_are_those_of_timm() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    assert adversarial(model, small(), steps=1).settings["mean"] == [0.5, 0.5, 0.5]
    brighter = [(images + 1.2, targets) for images, targets in small()]
    with pytest.raises(AnalysisError, match=r"pretrained_cfg: mean 0\.5 0\.5 0\.5, std 0\.5 .* are 0\.6 to 1\.6, pixe"):
        adversarial(model, brighter)
    assert adversarial(model, brighter, steps=1, bounds=(0, 2)).rows[0]["images"] == 4
    grey = timm.create_model("test_resnet", in_chans=1)
    with pytest.raises(AnalysisError, match=r"have 3 and 3 values, the images 1 channel; pass mean="):
        adversarial(grey, [(torch.zeros(1, 1, 32, 32), torch.tensor([0]))])


# refusals

IMAGES, LABELS = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epsilon": -0.1}, r"epsilon is -0\.1; it is a change of pixels from 0 up, such as 8/255"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"step_size": "big"}, "step_size is 'big'"),
        ({"steps": 0}, "steps is 0; it is a whole number from 1 up"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"eot": 0}, "eot is 0"),
        ({"repeats": True}, "repeats is True"),
        ({"seed": -1}, "seed is -1; it is a whole number from 0 up"),
        ({"max_images": 0}, "max_images is 0"),
        ({"attacks": ()}, "attacks are none; name one or several of fgsm, pgd"),
        ({"attacks": ("fgsm", "cw")}, "attacks are 'fgsm', 'cw'"),
        ({"attacks": ("pgd", "pgd")}, "each once"),
        ({"norm": "L1"}, "norm is 'L1'; it is one of Linf, L2"),
        ({"norm": "L2"}, r"fgsm changes every pixel by epsilon, so it has no L2 form; write attacks=\('pgd',\)"),
        ({"bounds": (1, 0)}, "bounds are"),
        ({"bounds": 1}, "bounds are 1"),
        ({"mean": 0.5}, "one of mean and std is missing"),
        ({"mean": 0.5, "std": 0}, "std above 0"),
        ({"mean": [0.5, 0.5], "std": 1}, "have 2 and 1 values, the images 3 channels"),
        ({"bounds": (0, 0.1)}, "pixels 0 to 0.1; pass mean= and std="),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        adversarial(linear(12), [(IMAGES, LABELS)], **settings)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "got no image"),
        (IMAGES, "data is a Tensor"),
        (None, "data is a NoneType"),
        (iter([(IMAGES, LABELS)]), "can be read once only; pass a list"),
        ([IMAGES], r"a batch of torch\.float32 \(2, 3, 2, 2\); pass batches of \(images, classes\)"),
        ([(IMAGES, LABELS.float())], r"torch\.float32 \(2,\)"),
        ([(IMAGES, LABELS - 1)], "class numbers"),
        ([(IMAGES, [{"boxes": 1}, {"boxes": 2}])], r"\(2, 3, 2, 2\), list; pass"),
        ([(IMAGES, LABELS + 2)], "class 3 is among the targets, but Sequential has 3 classes"),
        ([(IMAGES * float("nan"), LABELS)], "are nan to nan"),
    ],
)
def test_data_that_make_no_sense(data: Any, words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        adversarial(linear(12), data)


def test_only_classifiers_are_attacked() -> None:
    with pytest.raises(AnalysisError, match=r"answers a tensor \(2, 3, 2, 2\) to 2 images, no logits"):
        adversarial(nn.ReLU(), [(IMAGES, LABELS)])
    with pytest.raises(AnalysisError, match="found str; detectors are not attacked"):
        adversarial("resnet18", [(IMAGES, LABELS)])  # type: ignore[arg-type]
    ultralytics = pytest.importorskip("ultralytics")
    with contextlib.redirect_stdout(io.StringIO()):
        detector = ultralytics.YOLO("yolo11n.yaml")
    with pytest.raises(AnalysisError, match="found YOLO; detectors are not attacked"):
        adversarial(detector, [(IMAGES, LABELS)])
    with pytest.raises(AnalysisError, match="DetectionModel answers a tuple"):
        adversarial(detector.model, [(torch.rand(2, 3, 64, 64), LABELS)])


def test_without_captum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.robust", None)
    with pytest.raises(AnalysisError, match=r'needs the package captum .*; run: pip install "cnn-surgeon\[attack\]"'):
        adversarial(linear(12), [(IMAGES, LABELS)])
