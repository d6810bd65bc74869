"""What users pass in: models, wrappers, and the size of their images."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import fx, nn

import surgeon
from surgeon import host
from surgeon.host import input_sizes, unwrap
from tests.contracts import Snapshot
from tests.zoo import PlainNet


@pytest.mark.parametrize(
    "size",
    [
        64,
        np.int64(64),
        np.uint8(64),
        torch.tensor(64),
        (64, 64),
        [64, 64],
        torch.Size([64, 64]),
        (np.int32(64), torch.tensor(64)),
        (3, 64, 64),
        [3, np.int64(64), 64],
    ],
    ids=repr,
)
def test_whole_numbers_of_any_library_are_a_size(size: Any) -> None:
    (found,) = input_sizes(PlainNet(), size)
    assert found == (3, 64, 64) and [type(n) for n in found] == [int, int, int]
    assert surgeon.locate(PlainNet(), size).input_size == (3, 64, 64)


@pytest.mark.parametrize(
    "size",
    [
        *(224.0, np.float64(224), "64", True, False, 0, -1, (), (64,), (64.0, 64), (3, True, 64), (1, 3, 64, 64)),
        *((0, 64), (3, 64, -64), {"h": 1}, {64, 65}, None.__class__, np.array([64, 64]), torch.tensor([64, 64])),
        *(torch.tensor(64.0), float("nan"), object()),
    ],
    ids=lambda size: repr(size).partition(" object at ")[0],
)
def test_everything_else_is_a_clear_error(size: Any) -> None:
    model = PlainNet()
    snapshot = Snapshot.of(model)
    for verb in (surgeon.locate, lambda m, s: surgeon.plan(m, "spd", s), lambda m, s: surgeon.apply(m, "spd", s)):
        with pytest.raises(surgeon.SurgeonError) as error:
            verb(model, size)
        assert str(error.value) == f"input_size is {size!r}; pass a positive int, (H, W) or (C, H, W)"
    assert snapshot.differences(Snapshot.of(model)) == []


def test_a_size_that_does_not_fit_says_so() -> None:
    with pytest.raises(surgeon.TraceError, match=r"cannot run PlainNet on an image of \(1, 64, 64\)"):
        surgeon.locate(PlainNet(), (1, 64, 64))


def test_an_unknown_size_says_how_to_pass_it() -> None:
    words = r"image size of PlainNet is not known: .* pass input_size=224, \(H, W\) or \(C, H, W\)"
    with pytest.raises(surgeon.SurgeonError, match=words):
        surgeon.locate(PlainNet())


class Sized(PlainNet):
    def __init__(self, size: Any) -> None:
        super().__init__()
        self.img_size = size


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: Sized(48), (3, 48, 48)),
        (lambda: Sized((48, 32)), (3, 48, 32)),
        (lambda: timm.create_model("test_resnet"), (3, 160, 160)),
        (lambda: timm.create_model("test_resnet", in_chans=1), (1, 160, 160)),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=96), (3, 96, 96)),
        (lambda: surgeon.create_model("digits_convnet"), (1, 32, 32)),
    ],
)
def test_the_size_is_what_the_model_says(build: Any, expected: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        model = build()
    assert input_sizes(model)[0] == expected


def test_an_operated_model_keeps_the_size_it_was_operated_at() -> None:
    model = surgeon.apply(PlainNet(), "spd", (40, 24))
    assert input_sizes(model) == [(3, 40, 24)] and input_sizes(model, 32) == [(3, 32, 32)]


class DistributedDataParallel(nn.Module):
    __module__ = "torch.nn.parallel.distributed"


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (nn.DataParallel, "wrapped in DataParallel: operate on its .module, then wrap again"),
        (lambda model: DistributedDataParallel(), "wrapped in DistributedDataParallel: operate on its .module"),
        (torch.compile, "wrapped in OptimizedModule: operate on its ._orig_mod, then compile again"),
        (
            lambda model: fx.symbolic_trace(nn.ReLU()),
            "on a traced or scripted ReLU: its code is fixed; operate on the model it was made",
        ),
        (
            lambda model: model.state_dict(),
            "an object of class OrderedDict: it is no nn.Module; pass the model itself",
        ),
        (lambda model: "resnet18", "an object of class str: it is no nn.Module"),
        (lambda model: PlainNet, "an object of class type: it is no nn.Module"),
    ],
)
def test_wrappers_are_refused_with_the_way_out(wrap: Any, words: str) -> None:
    wrapped = wrap(PlainNet())
    for verb in (unwrap, surgeon.locate, surgeon.record, surgeon.undo, lambda m: surgeon.apply(m, "spd", 32)):
        with pytest.raises(surgeon.RefusedError) as error:
            verb(wrapped)
        assert words in str(error.value)


def test_other_kinds_of_objects_join_by_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    class Detector:
        def __init__(self) -> None:
            self.model = PlainNet()

    monkeypatch.setattr(host, "_hosts", [])
    host.register_host(host.Host(lambda found: found.model if isinstance(found, Detector) else None))
    detector = Detector()
    assert unwrap(detector) is detector.model and unwrap(detector.model) is detector.model
    assert surgeon.apply(detector, "spd", 32) is detector
    assert surgeon.record(detector.model).count("rewritten") == 4
