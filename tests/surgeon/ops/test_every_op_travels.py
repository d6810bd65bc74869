"""Contract 7 over every registered op, random ones in identity mode: copied, saved, averaged, compiled, exported."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import surgeon
from tests.contracts import images, operate, relative, rewritten, stir

X = images(64, dtype=torch.float32)
SETTINGS: dict[str, dict[str, Any]] = {  # of ops that draw: not in evaluation mode
    **{op: {"when": "train"} for op in ("spatial_shuffle", "patch_shuffle", "channel_shuffle", "stochastic")},
    "gap": {"depths": [1, 2, "last"]},
}
OPS = surgeon.list_ops()


def build(op: str) -> nn.Module:
    torch.manual_seed(0)
    model = surgeon.create_model("test_resnet", num_classes=10)
    return operate(model, {op: SETTINGS.get(op, {})}, 64)


@pytest.fixture(params=OPS)
def model(request: Any) -> nn.Module:
    """Operated, every weight in use."""
    operated = stir(build(request.param), seed=3).eval()
    assert rewritten(operated)
    return operated


@torch.no_grad()
def answer(model: nn.Module, x: Tensor = X) -> Tensor:
    return model(x)


def test_copied_pickled_and_saved(model: nn.Module, tmp_path: Path) -> None:
    y = answer(model)
    assert torch.equal(answer(copy.deepcopy(model)), y)
    assert torch.equal(answer(pickle.loads(pickle.dumps(model))), y)
    loaded = surgeon.load(surgeon.save(model, tmp_path))
    assert torch.equal(answer(loaded), y) and str(surgeon.record(loaded)) == str(surgeon.record(model))
    with torch.no_grad():
        model.get_classifier().weight.add_(1)
    assert not torch.equal(answer(model), y)


def test_the_state_fits_another(model: nn.Module) -> None:
    (op,) = {change.op for change in surgeon.record(model).changes}
    other = build(op).eval()
    assert not torch.equal(answer(other), answer(model))
    other.load_state_dict(model.state_dict())
    assert torch.equal(answer(other), answer(model))


def test_averaged(model: nn.Module) -> None:
    ema, old = ModelEmaV3(model.train(), decay=0.5), copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update(model)
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p, old.get_parameter(name) + 0.5)


@torch.no_grad()
def test_compiled_and_exported(model: nn.Module) -> None:
    torch._dynamo.reset()
    y = answer(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative(compiled(X), y) < 1e-5
    program = torch.export.export(model, (X,)).module()
    assert relative(program(X).detach(), y) < 1e-5
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx(model: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.onnx.export(model, (X,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    assert relative(torch.from_numpy(y), answer(model)) < 1e-5
