"""SPDAvgPool2d and SPDMaxPool2d against the pools they replace: exact everywhere, and they train, fold, travel."""

import copy
import io
import itertools
import random

import pytest
import torch
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import nn

from surgeon.errors import RefusedError
from surgeon.ops.spd_pool import SPDAvgPool2d, SPDMaxPool2d

TOLERANCE = 1e-12
CHANNELS = 3
SIZES = [(1, 1), (1, 2), (2, 3), (4, 1), (3, 5), (5, 4), (6, 7), (7, 9), (8, 8), (9, 6), (11, 12), (13, 10), (17, 16)]


def spd_of(pool: nn.Module, full: bool = False) -> nn.Module:
    cls = SPDAvgPool2d if isinstance(pool, nn.AvgPool2d) else SPDMaxPool2d
    return cls.from_pool(pool, CHANNELS, full=full, dtype=torch.float64)


def error(a: nn.Module, b: nn.Module, size: tuple[int, int]) -> float | None:
    """Largest difference on random input, infinite where shapes differ; None where the pool takes no such input."""
    x = torch.randn(2, CHANNELS, *size, dtype=torch.float64) - 3  # all negative or nearly: a padded zero would show
    with torch.no_grad():
        try:
            y = a(x)
        except RuntimeError:
            return None
        z = b(x)
    if y.shape != z.shape or not torch.equal(y.isinf(), z.abs() > 1e300):
        return float("inf")
    return float((y - z)[y.isfinite()].abs().max()) if y.isfinite().any() else 0.0


def stir(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    return module


def pools() -> list[nn.Module]:
    """Every kernel with every stride, padding and mode; rectangular ones at random."""
    found: list[nn.Module] = []
    for k, s, ceil in itertools.product((1, 2, 3, 4, 5), (2, 3, 4), (False, True)):
        for p in range(k // 2 + 1):
            found += [nn.AvgPool2d(k, s, p, ceil, include) for include in (False, True)]
            found += [nn.AvgPool2d(k, s, p, ceil, divisor_override=5)]
            found += [nn.MaxPool2d(k, s, p, d, ceil_mode=ceil) for d in (1, 2, 3)]
        found += [AvgPool2dSame(k, s, ceil_mode=ceil, count_include_pad=include) for include in (False, True)]
        found += [MaxPool2dSame(k, s, dilation=d, ceil_mode=ceil) for d in (1, 2)]
    rng = random.Random(0)
    for _ in range(150):
        k, s = (rng.randint(1, 5), rng.randint(1, 5)), rng.choice([(1, 2), (2, 1), (3, 1), (2, 3), (4, 2)])
        p, ceil = tuple(rng.randint(0, n // 2) for n in k), rng.random() < 0.5
        found += [
            nn.AvgPool2d(k, s, p, ceil, rng.random() < 0.5),
            nn.MaxPool2d(k, s, p, rng.randint(1, 2), ceil_mode=ceil),
        ]
    return found


def test_exact_at_every_size():
    checked = 0
    for pool in pools():
        layer = spd_of(pool)
        for size in SIZES:
            found = error(pool, layer, size)
            assert found is None or found < TOLERANCE, (pool, size)
            checked += found is not None
    assert checked > 8000  # of 10,600; the others are too small for the pool


def test_a_full_conv_starts_as_the_same_function():
    for pool in pools()[::5]:
        layer = spd_of(pool, full=True)
        assert layer.weight.shape[1] == CHANNELS * pool_area(pool)
        for size in SIZES[5:]:
            found = error(pool, layer, size)
            assert found is None or found < TOLERANCE, (pool, size)
        assert found is not None


def pool_area(pool: nn.Module) -> int:
    return pool.stride**2 if isinstance(pool.stride, int) else pool.stride[0] * pool.stride[1]


@pytest.mark.parametrize("full", [False, True])
def test_the_check_notices_one_changed_weight(full):
    for pool in (nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(1, 2)):
        layer = spd_of(pool, full)
        for i in range(layer.weight.numel()):
            wrong = copy.deepcopy(layer)
            with torch.no_grad():
                wrong.weight.view(-1)[i] += 1
            assert error(pool, wrong, (8, 9)) > 1e-3, (pool, i)


def test_the_check_notices_a_missing_count_map():
    for pool in (nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(2, ceil_mode=True)):
        wrong = spd_of(pool)
        wrong.divisor_override = 1  # the weights are there, the map is not
        assert error(pool, wrong, (8, 9)) > 1e-3


def test_kernels_are_the_smallest():
    assert spd_of(nn.AvgPool2d(2)).weight.shape == (3, 4, 1, 1)
    assert spd_of(nn.AvgPool2d(3, 2, 1)).weight.shape == (3, 4, 2, 2)
    assert spd_of(nn.AvgPool2d((5, 1), (2, 1))).weight.shape == (3, 2, 3, 1)
    assert spd_of(nn.MaxPool2d(3, 3, 1), full=True).weight.shape == (3, 27, 1, 1)


def test_a_slice_is_a_max_pool_of_one():
    x = torch.randn(2, 3, 7, 8)
    layer = SPDMaxPool2d.from_pool(nn.MaxPool2d(1, 2), 3)
    assert torch.equal(layer(x), x[:, :, ::2, ::2])


@pytest.mark.parametrize("full", [False, True])
def test_every_tap_gets_a_gradient(full):
    for pool in (
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d(1, 3),
    ):
        layer = spd_of(pool, full)
        layer(torch.randn(2, CHANNELS, 9, 8, dtype=torch.float64)).square().sum().backward()
        assert bool(torch.isfinite(layer.weight.grad).all())
        assert int((layer.weight.grad != 0).sum()) == layer.weight.numel()


def test_dilated_windows_of_nothing_but_padding_make_no_nan():
    pool = nn.MaxPool2d(2, 2, 1, dilation=2)
    layer, x = spd_of(pool), torch.randn(1, CHANNELS, 1, 3, dtype=torch.float64)
    assert bool(pool(x).isinf().any())
    assert bool(layer(x).isfinite().all())


def test_an_untrained_layer_lowers_to_the_pool():
    for pool in pools()[::3]:
        for full in (False, True):
            lowered = spd_of(pool.eval(), full).lower()
            assert lowered is not pool
            assert (type(lowered), vars(lowered)) == (type(pool), vars(pool))


def folds(pool: nn.Module) -> bool:
    """Which trained pools have a standard form at every size, by the rule in the docstring."""
    same, k = isinstance(pool, (AvgPool2dSame, MaxPool2dSame)), pool.kernel_size
    if pool.ceil_mode:
        return False
    if isinstance(pool, nn.MaxPool2d):
        return not same and pool.dilation == 1
    padded = pool.padding not in (0, (0, 0))
    if same and isinstance(k, tuple):
        return all(n >= s or n == 1 == s for n, s in zip(k, pool.stride, strict=True))
    return pool.count_include_pad or pool.divisor_override is not None or not padded


def test_trained_layers_fold_wherever_they_can():
    folded = 0
    for pool in pools():
        layer = stir(spd_of(pool))
        lowered = layer.lower()
        assert (lowered is not None) == folds(pool), pool
        for size in SIZES if lowered is not None else ():
            found = error(layer, lowered, size)
            assert found is None or found < TOLERANCE, (pool, size)
        folded += lowered is not None
    assert folded > 150


def test_the_folding_check_notices():
    layer = stir(spd_of(nn.AvgPool2d(3, 2, 1), full=True))
    lowered = layer.lower()
    assert error(layer, lowered, (8, 9)) < TOLERANCE
    with torch.no_grad():
        lowered[-1].weight[0] += 1
    assert error(layer, lowered, (8, 9)) > 1e-3


class Doubled(nn.AvgPool2d):
    def forward(self, x):
        return 2 * super().forward(x)


REFUSED = {
    "indices": (SPDMaxPool2d, nn.MaxPool2d(2, return_indices=True), "returns the indices of the maxima"),
    "max": (SPDMaxPool2d, nn.MaxPool2d(3, 1), r"has stride \(1, 1\)"),
    "average": (SPDAvgPool2d, nn.AvgPool2d(3, 1), r"has stride \(1, 1\)"),
    "adaptive": (SPDAvgPool2d, nn.AdaptiveAvgPool2d(2), "is a AdaptiveAvgPool2d, not an nn.AvgPool2d"),
    "other": (SPDAvgPool2d, nn.MaxPool2d(2), "is a MaxPool2d, not an nn.AvgPool2d"),
    "forward": (SPDAvgPool2d, Doubled(2), "is a Doubled whose forward is not that of nn.AvgPool2d"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused_with_the_reason(name):
    cls, pool, reason = REFUSED[name]
    with pytest.raises(RefusedError, match=reason) as raised:
        cls.from_pool(pool, 3)
    assert cls.why_not(pool) in str(raised.value)


def test_what_can_be_exact_has_no_reason():
    assert SPDAvgPool2d.why_not(nn.AvgPool2d(2)) is SPDAvgPool2d.why_not(AvgPool2dSame(3, 2)) is None
    assert SPDMaxPool2d.why_not(nn.MaxPool2d(2)) is SPDMaxPool2d.why_not(MaxPool2dSame(3, 2)) is None


def test_device_dtype_and_mode():
    layer = SPDMaxPool2d.from_pool(nn.MaxPool2d(2).eval(), 4, device="meta", dtype=torch.bfloat16)
    assert (layer.weight.device.type, layer.weight.dtype, layer.training) == ("meta", torch.bfloat16, False)
    assert layer(torch.empty(1, 4, 5, 6, device="meta", dtype=torch.bfloat16)).shape == (1, 4, 2, 3)
    assert SPDAvgPool2d.from_pool(nn.AvgPool2d(2), 4).weight.dtype == torch.get_default_dtype()
    half = SPDAvgPool2d.from_pool(nn.AvgPool2d(3, 2, 1, count_include_pad=False), 4, dtype=torch.bfloat16)
    assert half(torch.rand(1, 4, 600, 3, dtype=torch.bfloat16)).isfinite().all()
    assert half(torch.ones(1, 4, 600, 3, dtype=torch.bfloat16)).sub(1).abs().max() < 0.01  # counts survive bfloat16


def test_copies_and_state_dicts_travel():
    for pool in (nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)):
        layer, twin = stir(spd_of(pool)), spd_of(pool)
        x = torch.rand(1, CHANNELS, 9, 9, dtype=torch.float64)
        assert not torch.equal(twin(x), layer(x))
        twin.load_state_dict(copy.deepcopy(layer.state_dict()), strict=True)
        assert torch.equal(twin(x), layer(x))
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))
        assert "3, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1)" in repr(layer)


TRAVELS = [
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.MaxPool2d(3, 2, 0, ceil_mode=True),
    AvgPool2dSame(3, 2),
]


@pytest.mark.parametrize("pool", TRAVELS, ids=lambda pool: type(pool).__name__)
def test_torch_export_and_compile(pool):
    layer, x = spd_of(pool).float().eval(), torch.rand(2, CHANNELS, 10, 9)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.rand(5, CHANNELS, 10, 9)
    assert torch.allclose(program.module()(more), pool(more), atol=1e-6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), pool(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("pool", TRAVELS[:2], ids=lambda pool: type(pool).__name__)
def test_onnx_computes_the_same(pool):
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, x, file = stir(spd_of(pool)).float().eval(), torch.rand(2, CHANNELS, 10, 9), io.BytesIO()
    torch.onnx.export(layer, (x,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(y), layer(x), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_exact_on_cuda():
    for pool in pools()[::9]:
        cls = SPDAvgPool2d if isinstance(pool, nn.AvgPool2d) else SPDMaxPool2d
        layer = cls.from_pool(pool, CHANNELS, device="cuda", dtype=torch.float64)
        x = torch.randn(2, CHANNELS, 31, 30, device="cuda", dtype=torch.float64)
        assert float((pool(x) - layer(x)).detach().abs().max()) < TOLERANCE, pool
