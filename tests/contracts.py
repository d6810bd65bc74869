"""The ten contracts of every op, as plain functions that raise AssertionError; ``tests/surgeon/ops`` runs them.

A function takes models, never a library name, so that one contract serves every op and every model. Equality is bit for
bit where nothing may change (``Snapshot``), and per site in float64 where a rewritten model must compute the same.
"""

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon import edit, freezing
from surgeon.ops.drawing import rewind

TOLERANCE = 1e-10  # relative, in float64
EDITS = (
    edit.Swap,
    edit.SwapCall,
    edit.OnEdge,
    edit.Append,
    edit.Prepend,
    freezing.Freeze,
    freezing.Attach,
    edit.SetAttribute,
)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
MARKS = ("_surgeon", "_surgeon_builder")


# what must not change


def bits(tensor: Tensor) -> bytes:
    """The values as they lie in memory, so that NaN equals itself and -0 differs from 0."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@dataclass
class Snapshot:
    """Everything a reader may see of a model and of the random number generators."""

    facts: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, *, identity: bool = True, modes: bool = True, keys: bool = True) -> "Snapshot":
        """Take it.

        Args:
            model: Any.
            identity: Whether modules and tensors must be the very same objects.
            modes: Whether training modes count.
            keys: Whether the keys and plain values of each ``__dict__`` count.
        """
        facts: dict[str, Any] = {"rng": (torch.get_rng_state().numpy().tobytes(), random.getstate())}
        facts["rng numpy"] = tuple(np.random.get_state()[1].tolist())
        for path, module in model.named_modules(remove_duplicate=False):
            facts[f"{path} class"] = (
                type(module) if identity else f"{type(module).__module__}.{type(module).__qualname__}"
            )
            facts[f"{path} hooks"] = [list(getattr(module, name)) for name in HOOKS]
            if identity:
                facts[f"{path} id"] = id(module)
            if modes:
                facts[f"{path} mode"] = module.training
            if keys:
                facts[f"{path} keys"] = plain(module)
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        for name, tensor in named:
            facts[f"{name} bits"] = "meta" if tensor.is_meta else bits(tensor)
            facts[f"{name} form"] = (tensor.shape, tensor.dtype, tensor.device, tensor.stride(), tensor.requires_grad)
            if identity:
                facts[f"{name} id"] = id(tensor)
        return cls(facts)

    def differences(self, other: "Snapshot") -> list[str]:
        keys = dict.fromkeys([*self.facts, *other.facts])
        return [key for key in keys if self.facts.get(key, "none") != other.facts.get(key, "none")]


def plain(module: nn.Module) -> dict[str, str]:
    """The attributes of a module that are plain values, and the names of the others."""
    held = {key: value for key, value in module.__dict__.items() if key not in (*MARKS, "training")}
    simple = (int, float, str, bool, tuple, list, dict, type(None))
    return {
        key: repr(value) if isinstance(value, simple) and not key.startswith("_") else "" for key, value in held.items()
    }


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor values as a trained network has: norms far from the identity, no zero-initialised head."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) for p in m.parameters()}

    def draw(shape: Any, low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low

    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim < 2 and (name.endswith("bias") and id(p) not in norms):
                p.copy_(draw(p.shape, -0.3, 0.3))
            elif p.ndim < 2:
                p.copy_(draw(p.shape, -0.3, 0.3) if name.endswith("bias") else draw(p.shape, 0.5, 1.5))
            elif float(p.abs().max()) < 1e-3 or float(p.std()) == 0:
                p.copy_(draw(p.shape, -1, 1) / p[0].numel() ** 0.5)
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(draw(b.shape, -0.3, 0.3))
            if name.endswith("running_var"):
                b.copy_(draw(b.shape, 0.5, 1.5))
    return model


def images(size: Any, batch: int = 2, dtype: torch.dtype = torch.float64, channels: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)


def run(model: nn.Module, x: Any) -> Any:
    """One forward pass; what is random begins anew, so that passes can be compared."""
    rewind(model)
    with torch.no_grad():
        return model(x)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value; infinite where the shapes differ or a value is not finite."""
    if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-6))


def rewritten(model: nn.Module) -> list[surgeon.Change]:
    return [change for change in surgeon.record(model).changes if change.status == "rewritten"]


def operate(model: nn.Module, recipe: Any, size: Any = None) -> nn.Module:
    """Apply; where there is no site, or every one is refused, the untouched model comes back."""
    try:
        return surgeon.apply(model, recipe, size)
    except surgeon.NoSiteError:
        return model
    except surgeon.RefusedError as error:
        assert "refuses all" in str(error), error
        return model


# 1 shape


def shape(before: nn.Module, after: nn.Module, sizes: list[tuple[int, int]]) -> None:
    """The logits keep their shape at every size, and timm's classifier protocol stays true."""
    dtype = next(after.parameters()).dtype
    for size in sizes:
        x = images(size, dtype=dtype)
        assert run(before, x).shape == run(after, x).shape, size
    x = images(sizes[0], dtype=dtype)
    promised = [claim for claim in protocol(before, x) if claim[1]]
    kept = dict(protocol(after, x))
    assert [name for name, _ in promised if not kept[name]] == []


def protocol(model: nn.Module, x: Tensor) -> Iterator[tuple[str, bool]]:
    """What a timm classifier promises of itself, and whether it holds."""
    if not hasattr(model, "forward_features"):
        return
    features = run_part(model, "forward_features", x)
    yield "num_features is the width of forward_features", model.num_features in features.shape
    width = run_part(model, "forward_head", features, pre_logits=True).shape[-1]
    yield "head_hidden_size is the width of the head's input", getattr(model, "head_hidden_size", width) == width
    logits = run_part(model, "forward_head", features)
    yield "forward_head of forward_features is forward", relative(logits, run(model, x)) < 1e-3
    for entry in getattr(model, "feature_info", None) or []:
        seen = output_of(model, str(entry["module"]), x)
        yield f"feature_info {entry['module']}", seen is None or entry["num_chs"] in seen.shape[1:]
    other = copy.deepcopy(model)
    other.reset_classifier(7)
    yield "reset_classifier", run(other.to(x.dtype), x).shape[-1] == 7


def run_part(model: nn.Module, name: str, *args: Any, **kwargs: Any) -> Tensor:
    rewind(model)
    with torch.no_grad():
        return getattr(model, name)(*args, **kwargs)


def output_of(model: nn.Module, path: str, x: Tensor) -> Tensor | None:
    """What the module at ``path`` answers inside the model."""
    if path not in dict(model.named_modules()):
        return None
    seen: list[Any] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _m, _i, out: seen.append(out))
    run(model, x)
    handle.remove()
    return seen[-1] if seen and isinstance(seen[-1], Tensor) else None


# 2 exact


def site_errors(before: nn.Module, after: nn.Module, sizes: list[tuple[int, int]]) -> dict[str, float]:
    """Relative difference at every rewritten site, inside the model and by itself.

    Inside: what the old and the new module answer when both models see the same images. By itself: both on random
    features of the size seen there, and of one row and three columns more; left out where the input has got channels.
    A site in a function is compared through its owner.
    """
    paths = list(dict.fromkeys(change.path for change in rewritten(after)))
    owners = [path.split(":")[0] for path in paths]
    found = dict.fromkeys(paths, 0.0)
    for size in sizes:
        old, new = (seen_at(model, owners, images(size)) for model in (before, after))
        for path, owner in zip(paths, owners, strict=True):
            pairs = zip(old[owner], new[owner], strict=True)
            pairs = [(a, first_of_block(a, b)) for (_, a), (_, b) in pairs]
            errors = [relative(a, b) for a, b in pairs if not partly_grown(a, b)]
            shape = old[owner][0][0].shape
            if ":" not in path and len(shape) == 4 and shape == new[owner][0][0].shape:
                errors += alone(before.get_submodule(path), after.get_submodule(path), shape)
            found[path] = max([found[path], *errors])
    return found


def alone(old: nn.Module, new: nn.Module, shape: torch.Size) -> list[float]:
    _, channels, height, width = shape
    found = []
    for side in ((height, width), (height + 1, width + 3)):
        x = images(side, channels=channels)
        a = run(old, x)
        found.append(relative(a, first_of_block(a, run(new, x))))
    return found


def seen_at(model: nn.Module, paths: list[str], x: Tensor) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Input and output of the modules at ``paths``, call by call, in one forward pass."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in paths}

    def keep(path: str) -> Any:
        return lambda _module, inputs, output: seen[path].append((inputs[0].clone(), output.clone()))

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in seen]
    run(model, x)
    for handle in handles:
        handle.remove()
    return seen


def partly_grown(old: Tensor, new: Tensor) -> bool:
    """Whether a concatenation holds more channels than before by no whole factor: then only what reads it can tell."""
    return old.ndim == 4 and old.shape[2:] == new.shape[2:] and new.shape[1] > old.shape[1]


def first_of_block(old: Tensor, new: Tensor) -> Tensor:
    """The part of ``new`` that stands for ``old``: all of it, or the channels or positions the strided conv kept."""
    if new.shape == old.shape or new.ndim != 4:
        return new
    if new.shape[2:] == old.shape[2:]:
        return new[:, :: new.shape[1] // old.shape[1]]
    step = [-(-n // o) for n, o in zip(new.shape[2:], old.shape[2:], strict=True)]
    return new[:, :, :: step[0], :: step[1]]


def exact(before: nn.Module, after: nn.Module, sizes: list[tuple[int, int]]) -> float:
    """Every rewritten site and the whole model compute what they did; returns the largest relative difference."""
    errors = site_errors(before, after, sizes)
    assert set(errors) == {change.path for change in rewritten(after)}
    for size in sizes:
        errors[f"model at {size}"] = relative(run(before, images(size)), run(after, images(size)))
    wrong = {path: error for path, error in errors.items() if not error < TOLERANCE}
    assert wrong == {}, wrong
    return max(errors.values())


def new_tensors(before: nn.Module, after: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of ``after`` that ``before`` has not, or has in another shape."""
    old = {name: p.shape for name, p in before.named_parameters()}
    return {name: p for name, p in after.named_parameters() if old.get(name) != p.shape}


def control(before: nn.Module, after: nn.Module, size: tuple[int, int], limit: int | None = None) -> int:
    """The negative control of ``exact``: one added to one entry of a new weight must fail it.

    The entry is the one the output depends on most: most of the others may lie behind a ReLU that is off.

    Returns:
        The number of weights tried, at most ``limit``.
    """
    y = after(images(size))
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)).sum().backward()
    weights = [p for p in new_tensors(before, after).values() if p.ndim > 1][:limit]
    for weight in weights:
        flat, at = weight.data.view(-1), int(weight.grad.abs().argmax())
        kept = flat[at].item()
        flat[at] += 1
        with pytest.raises(AssertionError):
            exact(before, after, [size])
        flat[at] = kept
    after.zero_grad(set_to_none=True)
    return len(weights)


# 3 once


def once(model: nn.Module, recipe: Any, size: Any = None) -> None:
    """A second application of the same recipe reports ``unchanged`` and changes nothing."""
    paths = [change.path for change in rewritten(model)]
    before, count = Snapshot.of(model), len(surgeon.record(model).changes)
    operate(model, recipe, size)
    assert before.differences(Snapshot.of(model)) == []
    later = surgeon.record(model).changes[count:]
    again = {change.path for change in later if change.status == "unchanged"}
    assert [c.path for c in later if c.status == "rewritten"] == []
    assert set(paths) <= again


# 4 atomic


def atomic(model: nn.Module, recipe: Any, size: Any = None) -> int:
    """Ctrl-C while any edit is built, or after it, leaves the model as it was; returns the number of edits tried."""
    before, edits = Snapshot.of(model), count_edits(model, recipe, size)
    for k in sorted({0, 1, edits // 2, edits - 1} & set(range(edits))):
        for late in (False, True):
            with interrupted(model, k, late), pytest.raises(KeyboardInterrupt):
                surgeon.apply(model, recipe, size)
            assert before.differences(Snapshot.of(model)) == [], (k, late)
    return edits


def count_edits(model: nn.Module, recipe: Any, size: Any = None) -> int:
    with interrupted(model, -1) as counter:
        operate(copy.deepcopy(model), recipe, size)
    return counter[1]


class interrupted:
    """Raise KeyboardInterrupt in the k-th edit of ``model``: while its module is built, or when it is done."""

    def __init__(self, model: nn.Module, k: int, late: bool = False) -> None:
        self.model, self.k, self.late = model, k, late
        self.seen = [0, 0]  # edits of the model itself, of any real model

    def __enter__(self) -> list[int]:
        self.patch = pytest.MonkeyPatch()
        for kind in EDITS:
            self.patch.setattr(kind, "perform", self.wrap(kind.perform))
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.patch.undo()

    def wrap(self, perform: Any) -> Any:
        def counted(one: Any, model: nn.Module) -> Any:
            self.seen[1] += "_surgeon_fake_mode" not in model.__dict__
            if model is not self.model:
                return perform(one, model)
            self.seen[0] += 1
            if self.seen[0] - 1 != self.k:
                return perform(one, model)
            return perform(replace(one, make=build_and_stop if self.late else stop), model)

        def build_and_stop(*args: Any) -> Any:
            torch.rand(1)
            raise KeyboardInterrupt

        return counted


def stop(*_: Any) -> Any:
    raise KeyboardInterrupt


# 5 carries


def carries_dtype(after: nn.Module, dtype: torch.dtype, device: str = "cpu") -> None:
    wrong = [n for n, p in after.named_parameters() if p.dtype != dtype or p.device.type != device]
    assert wrong == []


def carries_memory_format(before: nn.Module, after: nn.Module) -> int:
    """Weights that replaced a channels-last one lie channels last; returns how many."""
    old = dict(before.named_parameters())
    fresh = {n: p for n, p in new_tensors(before, after).items() if n in old and p.ndim == 4}
    assert [n for n, p in fresh.items() if not p.is_contiguous(memory_format=torch.channels_last)] == []
    return len(fresh)


def carries_modes(before: nn.Module, after: nn.Module) -> None:
    """Modes and ``requires_grad`` are as they were under every name that is still there."""
    old, new = dict(before.named_modules()), dict(after.named_modules())
    assert [n for n in old.keys() & new.keys() if old[n].training != new[n].training] == []
    frozen = {n: p.requires_grad for n, p in before.named_parameters()}
    assert [n for n, p in after.named_parameters() if frozen.get(n, p.requires_grad) != p.requires_grad] == []


# 6 learns


def learns(before: nn.Module, after: nn.Module, x: Tensor) -> int:
    """Every new trainable tensor gets a finite gradient, non-zero somewhere, also among the entries that start at zero.

    Returns:
        The number of new tensors.
    """
    after.train()
    y = after(x)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)).sum().backward()
    fresh = new_tensors(before, after)
    for name, p in fresh.items():
        assert p.requires_grad and p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name
        zero = p.detach() == 0
        assert not zero.any() or p.grad[zero].abs().max() > 0, f"{name}: what starts at zero stays zero"
    return len(fresh)


# 9 leaves no trace


def leaves_no_trace(model: nn.Module, read: Any) -> None:
    """Reading changes no parameter, buffer, mode, hook, attribute or random number generator."""
    before, whole = Snapshot.of(model), [*model.__dict__]
    read(model)
    assert before.differences(Snapshot.of(model)) == []
    assert [*model.__dict__] == whole


# 10 undo


def undone(before: Snapshot, model: nn.Module, **what: bool) -> None:
    """``model`` is bit for bit what it was when ``before`` was taken, and says it was not operated."""
    differ = [d for d in before.differences(Snapshot.of(model, **what)) if not d.startswith("rng")]
    assert differ == [], differ
    assert surgeon.record(model).changes == ()
