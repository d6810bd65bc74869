"""SPDConv2d against the conv it replaces: exact everywhere, and it trains, folds, travels."""

import copy
import io
import itertools
import random
import warnings

import pytest
import timm.layers
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from surgeon.errors import RecipeError, RefusedError
from surgeon.ops.spd_conv import SPDConv2d, SPDStdConv2d

TOLERANCE = 1e-12
STD = (
    timm.layers.StdConv2d,
    timm.layers.StdConv2dSame,
    timm.layers.ScaledStdConv2d,
    timm.layers.std_conv.ScaledStdConv2dSame,
)


def error(a: nn.Module, b: nn.Module, channels: int, size: tuple[int, int]) -> float:
    """Largest difference on random input; infinite where shapes differ."""
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    with torch.no_grad():
        y, z = a(x), b(x)
    return float((y - z).abs().max()) if y.shape == z.shape else float("inf")


def stir(module: nn.Module) -> nn.Module:
    """Every parameter random, as if trained."""
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    return module


def least_size(conv: nn.Conv2d) -> tuple[int, int]:
    """The smallest input the conv takes."""
    same = isinstance(conv, timm.layers.Conv2dSame) or getattr(conv, "same_pad", False)
    padding = (10, 10) if same else (0, 0) if conv.padding == "valid" else conv.padding
    extents = zip(conv.kernel_size, conv.dilation, padding, strict=True)
    reflected = 1 if conv.padding_mode in ("reflect", "circular") else 0  # torch wants more pixels than padding
    return tuple(max(d * (k - 1) + 1 - 2 * p, 1 + reflected * p) for k, d, p in extents)


def table() -> list[dict]:
    """Settings of nn.Conv2d: every kernel with every stride, then random mixtures, rectangular ones too."""
    rows = [
        {"kernel_size": k, "stride": s, "padding": p, "dilation": 1, "groups": 1}
        for k, s in itertools.product(range(1, 8), (2, 3, 4))
        for p in {0, 1, k // 2, k}
    ]
    rng = random.Random(0)
    strides = [s for s in itertools.product((1, 2, 3, 4), repeat=2) if s != (1, 1)]
    for _ in range(1000):
        rows.append(
            {
                "kernel_size": (rng.randint(1, 7), rng.randint(1, 7)),
                "stride": rng.choice(strides),
                "padding": (rng.randint(0, 5), rng.randint(0, 5)),
                "dilation": (rng.randint(1, 4), rng.randint(1, 3)),
                "groups": rng.choice((1, 2, 4)),
                "bias": rng.random() < 0.5,
            }
        )
    return rows


@pytest.mark.parametrize("kernel", ["same", "minimal"])
def test_exact_at_every_size(kernel):
    worst = 0.0
    for settings in table():
        conv = nn.Conv2d(4, 8, **settings, dtype=torch.float64)
        spd = SPDConv2d.from_conv2d(conv, kernel=kernel)
        h, w = least_size(conv)
        for size in {(h, w), (h + 1, w + 4), (h + 3, w + 2), (16, 17) if h < 16 and w < 17 else (h + 6, w + 7)}:
            worst = max(worst, error(conv, spd, 4, size))
            assert worst < TOLERANCE, (settings, size)
        assert spd.weight.shape[2:] == (spd.rows.kernel, spd.cols.kernel)
        if kernel == "same":
            assert all(a >= b for a, b in zip(spd.weight.shape[2:], conv.kernel_size, strict=True))


def test_the_check_notices_one_changed_weight():
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, dtype=torch.float64)
    spd = SPDConv2d.from_conv2d(conv)
    for i in range(spd.weight.numel()):
        wrong = copy.deepcopy(spd)
        with torch.no_grad():
            wrong.weight.view(-1)[i] += 1
        assert error(conv, wrong, 4, (9, 8)) > 1e-3


def test_depthwise_is_exact_and_stays_grouped():
    conv = nn.Conv2d(6, 12, 5, stride=2, padding=2, groups=6, dtype=torch.float64)
    spd = SPDConv2d.from_conv2d(conv)
    assert spd.weight.shape == (12, 4, 5, 5)
    assert error(conv, spd, 6, (11, 12)) < TOLERANCE


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode):
    for k, s, p in [(3, 2, 1), (5, 3, 2), (4, 2, (2, 1)), ((3, 7), (2, 1), (1, 3)), (3, 2, 0)]:
        conv = nn.Conv2d(2, 3, k, s, p, padding_mode=mode, dtype=torch.float64)
        spd = SPDConv2d.from_conv2d(conv)
        h, w = least_size(conv)
        for size in ((h, w), (h + 1, w + 2), (12, 9)):
            assert error(conv, spd, 2, size) < TOLERANCE
            for trained in (spd, stir(copy.deepcopy(spd))):
                assert error(trained, trained.lower(), 2, size) < TOLERANCE


def test_padding_by_name():
    conv = nn.Conv2d(2, 3, 3, 2, padding="valid", dtype=torch.float64)
    assert error(conv, SPDConv2d.from_conv2d(conv), 2, (8, 9)) < TOLERANCE


@pytest.mark.parametrize("kernel", ["same", "minimal"])
def test_tensorflow_same_padding_at_any_size(kernel):
    for k, s, d in itertools.product(range(1, 8), (2, 3, 4, (1, 2), (3, 2)), (1, 2)):
        conv = timm.layers.Conv2dSame(2, 3, k, s, dilation=d, dtype=torch.float64)
        spd = SPDConv2d.from_conv2d(conv, kernel=kernel)
        trained = stir(copy.deepcopy(spd))
        untrained, lowered = spd.lower(), trained.lower()
        assert untrained.kernel_size == conv.kernel_size
        for n in range(1, 10):
            assert error(conv, spd, 2, (n, n + 3)) < TOLERANCE
            assert error(conv, untrained, 2, (n, n + 3)) < TOLERANCE
            assert lowered is None or error(trained, lowered, 2, (n, n + 3)) < TOLERANCE
        assert lowered is not None or min(d * (k - 1) + 1, k) < max(conv.stride)


@pytest.mark.parametrize("cls", STD)
def test_weight_standardised_convs_are_exact_and_learn(cls):
    for k, s, groups in [(3, 2, 1), (7, 2, 2), (1, 2, 1), (3, 3, 4), (5, (2, 1), 1)]:
        conv = cls(4, 8, k, stride=s, groups=groups, bias=True, padding="SAME" if "Same" in cls.__name__ else None)
        conv = stir(conv.double())
        spd = SPDConv2d.from_conv2d(conv)
        assert isinstance(spd, SPDStdConv2d)
        assert SPDConv2d.why_not(conv) is None
        h, w = least_size(conv)
        for size in ((h, w), (h + 1, w + 2), (h + 2, w + 1), (11, 12)):
            assert error(conv, spd, 4, size) < TOLERANCE
            assert error(spd, spd.lower(), 4, size) < TOLERANCE
        spd(torch.randn(2, 4, 11, 12, dtype=torch.float64)).square().sum().backward()
        names = {"weight", "bias", "extra"} | ({"gain"} if "Scaled" in cls.__name__ else set())
        assert {n for n, p in spd.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == names
        trained = stir(spd)
        lowered = trained.lower()
        assert lowered is None or error(trained, lowered, 4, (11, 12)) < TOLERANCE
        with torch.no_grad():
            spd.extra.view(-1)[0] += 1
        assert error(conv, spd, 4, (11, 12)) > 1e-3


def test_every_tap_gets_a_gradient():
    spd = SPDConv2d.from_conv2d(nn.Conv2d(4, 8, 3, stride=2, padding=1))
    spd(torch.randn(2, 4, 9, 10)).square().sum().backward()
    assert bool(torch.isfinite(spd.weight.grad).all())
    assert int((spd.weight.grad != 0).sum()) == spd.weight.numel()
    assert int((spd.bias.grad != 0).sum()) == 8


def test_lowering_equals_at_every_size_and_the_check_notices():
    for settings in table()[::3]:
        conv = nn.Conv2d(4, 8, **settings, dtype=torch.float64)
        spd = SPDConv2d.from_conv2d(conv)
        trained = stir(copy.deepcopy(spd))
        untrained, lowered = spd.lower(), trained.lower()
        h, w = least_size(conv)
        for size in {(h, w), (h + 1, w + 4), (h + 3, w + 2), (h + 6, w + 7)}:
            assert error(conv, untrained, 4, size) < TOLERANCE, (settings, size)
            assert error(trained, lowered, 4, size) < 10 * TOLERANCE, (settings, size)  # sums of up to 3,000 terms
        with torch.no_grad():
            next(lowered.parameters())[0] += 1
        assert error(trained, lowered, 4, (h + 6, w + 7)) > 1e-3


def test_an_untrained_layer_lowers_to_the_original_conv():
    for settings in table():
        if settings["padding"] == 0 or isinstance(settings["padding"], int):
            conv = nn.Conv2d(4, 8, **settings)
            lowered = SPDConv2d.from_conv2d(conv).lower()
            assert type(lowered) is nn.Conv2d
            assert torch.equal(lowered.weight, conv.weight)
            assert (lowered.padding, lowered.stride) == (conv.padding, conv.stride)
    dilated = nn.Conv2d(4, 4, (3, 5), (2, 1), (3, 4), dilation=(3, 2), groups=4)
    lowered = SPDConv2d.from_conv2d(dilated).lower()
    assert torch.equal(lowered.weight, dilated.weight)
    assert (lowered.dilation, lowered.padding, lowered.groups) == ((3, 2), (3, 4), 4)


def test_a_trained_same_kernel_lowers_to_the_papers_six_by_six():
    # SPD + 3x3 == 6x6 of stride 2 and padding 2, which alone gives another size on odd inputs
    lowered = stir(SPDConv2d.from_conv2d(nn.Conv2d(3, 8, 3, 2, 1))).lower()
    assert lowered[0].padding == (2, 3, 2, 3)
    assert (lowered[1].kernel_size, lowered[1].stride) == ((6, 6), (2, 2))


@pytest.mark.parametrize("kernel", ["same", "minimal", 1, 2, 5])
def test_fresh_weights_keep_the_output_size(kernel):
    torch.manual_seed(1)
    for settings in table()[::5]:
        conv = nn.Conv2d(4, 8, **settings)
        spd = SPDConv2d.from_conv2d(conv, kernel=kernel, init="fresh")
        h, w = least_size(conv)
        for size in ((h, w), (h + 1, w + 4), (h + 6, w + 7)):
            x = torch.randn(1, 4, *size)
            assert spd(x).shape == conv(x).shape
            lowered = spd.double().lower()
            assert error(spd, lowered, 4, size) < TOLERANCE
            spd.float()
        assert (spd.bias is None) == (conv.bias is None)
    conv = nn.Conv2d(4, 8, 3, 2, 1)
    torch.manual_seed(5)
    drawn = SPDConv2d.from_conv2d(conv, init="fresh")
    torch.manual_seed(5)
    expected = nn.Conv2d(16, 8, 3)
    assert torch.equal(drawn.weight, expected.weight)
    assert torch.equal(drawn.bias, expected.bias)


def test_fresh_weights_of_a_scaled_standardised_conv():
    conv = stir(timm.layers.ScaledStdConv2d(4, 8, 3, stride=2, gain_init=0.7))
    spd = SPDConv2d.from_conv2d(conv, init="fresh")
    assert spd.extra is None
    assert spd.weight.shape == (8, 16, 3, 3)
    assert bool((spd.gain == torch.tensor(0.7)).all())
    assert spd.scale == pytest.approx((16 * 9) ** -0.5)
    assert spd(torch.rand(1, 4, 9, 9)).shape == (1, 8, 5, 5)


def test_a_kernel_given_as_a_number_is_exact_where_it_suffices():
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=3, dtype=torch.float64)
    assert SPDConv2d.minimal_kernel(conv) == (4, 4)
    assert SPDConv2d.from_conv2d(conv).weight.shape[2:] == (4, 4)
    assert error(conv, SPDConv2d.from_conv2d(conv, kernel=6), 2, (9, 10)) < TOLERANCE
    with pytest.raises(RecipeError, match=r"kernel=3 cannot hold a 3x3 conv.*4x4 blocks; use kernel=4 or more"):
        SPDConv2d.from_conv2d(conv, kernel=3)
    with pytest.raises(RecipeError, match="init='new' is unknown; use 'exact' or 'fresh'"):
        SPDConv2d.from_conv2d(conv, init="new")


def test_nothing_is_drawn_and_the_conv_is_left_alone():
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    before, state = copy.deepcopy(conv.state_dict()), torch.get_rng_state()
    spd = SPDConv2d.from_conv2d(conv)
    spd.lower()
    stir_one = spd.weight.detach()
    stir_one += 1
    assert all(torch.equal(before[name], value) for name, value in conv.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("init", ["exact", "fresh"])
def test_it_carries_what_the_conv_had(init):
    conv = nn.Conv2d(4, 8, 3, 2, 1, dtype=torch.bfloat16).to(memory_format=torch.channels_last).eval()
    conv.weight.requires_grad_(False)
    spd = SPDConv2d.from_conv2d(conv, init=init)
    for layer in (spd, stir(copy.deepcopy(spd)).lower()[-1] if init == "fresh" else spd.lower()):
        assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert not layer.weight.is_contiguous()
        assert (layer.weight.requires_grad, layer.bias.requires_grad, layer.training) == (False, True, False)
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    assert all(getattr(spd, name) == getattr(conv, name) for name in names)
    assert SPDConv2d.from_conv2d(nn.Conv2d(4, 8, 3, 2), init=init).weight.is_contiguous()


@pytest.mark.parametrize("cls", [nn.Conv2d, timm.layers.ScaledStdConv2d])
def test_it_works_on_the_meta_device(cls):
    spd = SPDConv2d.from_conv2d(cls(4, 8, 3, 2, device="meta"))
    assert {p.device.type for p in spd.parameters()} == {"meta"}
    assert spd(torch.empty(1, 4, 9, 9, device="meta")).shape == (
        1,
        8,
        *cls(4, 8, 3, 2)(torch.rand(1, 4, 9, 9)).shape[2:],
    )
    assert next(spd.lower().parameters()).device.type == "meta"


def test_channels_last_in_channels_last_out():
    conv = nn.Conv2d(4, 8, 3, 2, 1).to(memory_format=torch.channels_last)
    spd = SPDConv2d.from_conv2d(conv)
    x = torch.rand(2, 4, 9, 8).to(memory_format=torch.channels_last)
    assert spd(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(spd(x), conv(x), atol=1e-6)


def test_patchify_is_recognised():
    patchify = [
        nn.Conv2d(3, 8, 4, 4),
        nn.Conv2d(3, 8, (2, 3), (2, 3)),
        nn.Conv2d(3, 8, (2, 1), (2, 1), dilation=(1, 3)),
    ]
    others = [
        nn.Conv2d(3, 8, 4, 2),
        nn.Conv2d(3, 8, 2, 2, padding=1),
        nn.Conv2d(3, 8, 2, 2, dilation=2),
        nn.Conv2d(3, 8, 1, 2),
        timm.layers.Conv2dSame(3, 8, 2, 2),  # pads the sizes that are no multiple of 2
        nn.MaxPool2d(2),
    ]
    assert [SPDConv2d.is_patchify(c) for c in patchify] == [True] * 3
    assert [SPDConv2d.is_patchify(c) for c in others] == [False] * 6


class Squared(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) ** 2


class Masked(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * (weight > 0), bias)


class Renamed(nn.Conv2d):
    """Forward as nn.Conv2d's: as good as one."""


def _not_finite() -> nn.Conv2d:
    conv = nn.Conv2d(2, 2, 3, 2)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = float("nan")
    return conv


def _hooked() -> nn.Conv2d:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Conv2d(2, 2, 3, 2))


def _bound() -> nn.Conv2d:
    conv = nn.Conv2d(2, 2, 3, 2)
    conv.forward = lambda x: x
    return conv


REFUSED = {
    "not a Conv2d": (lambda: nn.Conv3d(2, 2, 3, 2), "is a Conv3d, not a Conv2d"),
    "condconv": (lambda: timm.layers.CondConv2d(2, 2, 3, 2), "is a CondConv2d whose kernel is mixed anew"),
    "forward": (lambda: Squared(2, 2, 3, 2), "is a Squared whose forward is not that of nn.Conv2d"),
    "conv_forward": (lambda: Masked(2, 2, 3, 2), "is a Masked whose forward is not"),
    "bound": (_bound, "is a Conv2d whose forward is not"),
    "stride": (lambda: nn.Conv2d(2, 2, 3), r"has stride \(1, 1\)"),
    "nan": (_not_finite, "is not finite"),
    "hook": (_hooked, "computed by a hook"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Conv2d(2, 2, 3, 2)), "parametrized; remove"),
    "lazy": (lambda: nn.LazyConv2d(2, 3, 2), "has no shape before its first forward"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused_with_the_reason(name):
    make, reason = REFUSED[name]
    with pytest.raises(RefusedError, match=reason) as raised:
        SPDConv2d.from_conv2d(make())
    assert SPDConv2d.why_not(make()) in str(raised.value)


def test_what_can_be_exact_has_no_reason():
    for conv in (nn.Conv2d(2, 2, 3, 2), Renamed(2, 2, 3, 2), timm.layers.Conv2dSame(2, 2, 3, 2)):
        assert SPDConv2d.why_not(conv) is None
    plain = parametrizations.weight_norm(nn.Conv2d(2, 2, 3, 2))
    parametrize.remove_parametrizations(plain, "weight")
    assert SPDConv2d.why_not(plain) is None


def test_inputs_too_small_are_an_error_as_before():
    conv = nn.Conv2d(2, 2, 5, 2)
    for module in (conv, SPDConv2d.from_conv2d(conv)):
        with pytest.raises(RuntimeError):
            module(torch.rand(1, 2, 4, 9))


def test_copies_and_state_dicts_travel():
    for conv in (nn.Conv2d(2, 4, 3, 2, 1), timm.layers.ScaledStdConv2d(2, 4, 3, 2)):
        spd, x = stir(SPDConv2d.from_conv2d(conv)), torch.rand(1, 2, 9, 9)
        twin = SPDConv2d.from_conv2d(conv)
        assert not torch.equal(twin(x), spd(x))
        twin.load_state_dict(copy.deepcopy(spd.state_dict()), strict=True)
        assert torch.equal(twin(x), spd(x))
        assert torch.equal(copy.deepcopy(spd)(x), spd(x))
        assert all(name in repr(spd) for name in ("kernel_size=(3, 3)", "stride=(2, 2)", "blocks=(3, 3)"))


def test_batch_norm_folds_into_it():
    spd, norm = SPDConv2d.from_conv2d(nn.Conv2d(4, 8, 3, 2, 1, bias=False)).double().eval(), nn.BatchNorm2d(8).double()
    norm = stir(norm).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    plain = nn.Sequential(spd, norm)
    fused = copy.deepcopy(spd)
    arguments = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    fused.weight, fused.bias = fuse_conv_bn_weights(spd.weight, spd.bias, *arguments)
    assert error(plain, fused, 4, (9, 10)) < TOLERANCE
    assert error(plain, fuse_conv_bn_eval(spd, norm), 4, (9, 10)) < TOLERANCE
    assert error(plain, spd, 4, (9, 10)) > 1e-3


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 4, 3, 2, 1), lambda: timm.layers.StdConv2dSame(3, 4, 3, 2)])
def test_torch_export(make, dynamic):
    spd = SPDConv2d.from_conv2d(make()).eval()
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(spd, (torch.rand(2, 3, 9, 8),), dynamic_shapes=shapes)
    x = torch.rand(5 if dynamic else 2, 3, 9, 8)
    assert torch.allclose(program.module()(x), spd(x), atol=1e-6)


def test_torch_export_with_sizes_that_vary_in_whole_blocks():
    spd = SPDConv2d.from_conv2d(nn.Conv2d(3, 4, 3, 2, 1)).eval()
    half = torch.export.Dim("half", min=2, max=64)
    program = torch.export.export(spd, (torch.rand(2, 3, 8, 8),), dynamic_shapes=({2: 2 * half},))
    x = torch.rand(2, 3, 20, 8)
    assert torch.allclose(program.module()(x), spd(x), atol=1e-6)


def test_torch_compile():
    spd = SPDConv2d.from_conv2d(nn.Conv2d(3, 4, 3, 2, 1))
    compiled = torch.compile(spd, backend="aot_eager", fullgraph=True)
    for size in ((8, 8), (9, 7)):
        x = torch.rand(2, 3, *size)
        assert torch.allclose(compiled(x), spd(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_onnx_computes_the_same():
    onnxruntime = pytest.importorskip("onnxruntime")
    spd = stir(SPDConv2d.from_conv2d(nn.Conv2d(3, 4, 3, 2, 1), kernel="minimal")).eval()  # with a one-sided pad
    x, file = torch.rand(2, 3, 9, 8), io.BytesIO()
    torch.onnx.export(spd, (x,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(y), spd(x), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_exact_on_cuda(memory_format):
    for settings in table()[::25]:
        conv = nn.Conv2d(4, 8, **settings, device="cuda", dtype=torch.float64).to(memory_format=memory_format)
        spd = SPDConv2d.from_conv2d(conv)
        assert spd.weight.is_cuda
        x = torch.randn(2, 4, 31, 30, device="cuda", dtype=torch.float64).contiguous(memory_format=memory_format)
        assert float((conv(x) - spd(x)).detach().abs().max()) < TOLERANCE, settings
        trained = stir(spd)
        assert float((trained.lower()(x) - trained(x)).detach().abs().max()) < 10 * TOLERANCE, settings
