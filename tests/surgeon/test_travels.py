"""Contract 7: an operated model goes where its original goes."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import surgeon
from tests.contracts import images, relative, stir
from tests.zoo import PlainNet

X = images(64, dtype=torch.float32)
RECIPES = {
    "spd": "spd",
    "conv-spd": {"spd": {"order": "conv-spd"}},
    "before the norm": {"spd": {"order": "conv-spd", "before": "norm"}},
    "aps": {"aps": {"padding": "circular"}},
}
NETS = {"timm": lambda: timm.create_model("test_resnet", num_classes=10), "plain": PlainNet}

REPEATED = "before the norm"  # the same layers, elsewhere
pytestmark = pytest.mark.parametrize(
    "recipe",
    [pytest.param(recipe, marks=pytest.mark.slow if name == REPEATED else ()) for name, recipe in RECIPES.items()],
    ids=RECIPES,
)


@pytest.fixture(params=[NETS["plain"], pytest.param(NETS["timm"], marks=pytest.mark.slow)], ids=["plain", "timm"])
def one(request: Any, recipe: Any) -> nn.Module:
    """As ``model``; for what takes long, one network on every push."""
    return operated(request.param, recipe)


@pytest.fixture(params=NETS.values(), ids=NETS)
def model(request: Any, recipe: Any) -> nn.Module:
    """Operated, every weight in use."""
    return operated(request.param, recipe)


def operated(build: Any, recipe: Any) -> nn.Module:
    return stir(surgeon.apply(build(), recipe, 64), seed=3).eval()


def close(a: Tensor, b: Tensor) -> bool:
    return relative(a.detach(), b.detach()) < 1e-5


def test_copies(model: nn.Module) -> None:
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), model(X)) and str(surgeon.record(twin)) == str(surgeon.record(model))
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(twin(X), model(X))


def test_ema(model: nn.Module) -> None:
    model.train()
    ema, old = ModelEmaV3(model, decay=0.5), copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update(model)
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p, old.get_parameter(name) + 0.5)


def test_timms_optimizers(model: nn.Module) -> None:
    model.train()
    optimizer = create_optimizer_v2(model, "adamw", lr=0.01, weight_decay=0.05)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(X).square().sum().backward()
    optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_state_dict(model: nn.Module, recipe: Any) -> None:
    other = surgeon.apply(type(model)() if isinstance(model, PlainNet) else NETS["timm"](), recipe, 64).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))


def test_export(one: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=2, max=8)
    program = torch.export.export(one, (X,), dynamic_shapes={"x": {0: batch}}).module()
    assert close(program(X), one(X))
    three = images(64, batch=3, dtype=torch.float32)
    assert close(program(three), one(three))


def test_compile(recipe: Any) -> None:
    model = stir(surgeon.apply(PlainNet(), recipe, 64), seed=3).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert close(compiled(X), model(X))
    model.train()
    loss = [net(X).square().sum() for net in (compiled, copy.deepcopy(model))]
    torch.testing.assert_close(*loss, rtol=1e-4, atol=1e-4)
    loss[0].backward()
    assert all(p.grad is not None for p in model.parameters())
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx(one: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for name, net in (("operated", one), ("lowered", surgeon.lower(one))):
        file = tmp_path / f"{name}.onnx"
        torch.onnx.export(net, (X,), file, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
        assert close(torch.from_numpy(y), one(X))


def test_data_parallel(model: nn.Module, tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model.train()
        parallel = nn.parallel.DistributedDataParallel(model)  # every parameter must take part
        parallel(X).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        with pytest.raises(surgeon.RefusedError, match="wrapped in DistributedDataParallel"):
            surgeon.locate(parallel, 64)
    finally:
        dist.destroy_process_group()


def test_amp(model: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(X)
    assert y.dtype == torch.bfloat16 and relative(model(X).detach(), y.detach().float()) < 0.1
