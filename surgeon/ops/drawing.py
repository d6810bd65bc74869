"""Layers that draw anew in each forward pass, the same on every device and in every process.

What is drawn is a pure function of (seed, stream, step), kept in buffers: training and evaluation are two streams, each
with its own step, so that evaluating in between changes no training run, and a saved state goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from surgeon.errors import AnalysisError, RefusedError
from surgeon.settings import complain

When = Literal["train", "eval", "both"]


class Drawing(nn.Module):
    """Base of layers that draw; a subclass calls :meth:`generator` once per forward, if :meth:`draws`.

    Where a forward is computed again inside a backward pass (gradient checkpointing), the last draw is repeated: so
    with checkpointing each forward needs its backward before the next forward.

    Args:
        seed: Of this layer.
        when: In which mode it draws; in the other it is an identity.
    """

    seed: Tensor
    steps: Tensor

    def __init__(self, seed: int, when: When = "both") -> None:
        super().__init__()
        self.when = when
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))  # of training, of evaluation

    def draws(self, x: Tensor) -> bool:
        """Whether this forward pass draws.

        Raises:
            RefusedError: When it does and is being exported: an exported program would repeat one draw for ever.
        """
        if self.when not in ("both", "train" if self.training else "eval"):
            return False
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch._C._get_tracing_state() is not None:
            raise RefusedError(
                f"{type(self).__name__} draws in {'training' if self.training else 'evaluation'} mode, and an exported "
                "program would repeat one draw for ever; undo it, or set its `when` to the other mode, and export again"
            )
        return True

    def generator(self) -> torch.Generator:
        """The generator of the next draw of this mode, on the CPU."""
        stream = 0 if self.training else 1
        if torch._C._current_graph_task_id() == -1:  # not inside a backward pass
            with torch.no_grad():
                self.steps[stream] += 1
        text = f"{int(self.seed)}:{stream}:{int(self.steps[stream])}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    def extra_repr(self) -> str:
        """Show when it draws."""
        return f"when={self.when!r}"


def check_seed(seed: int, op: str) -> None:
    """Refuse a seed that torch's generators do not take, or that a number of its own added to it would make such.

    Raises:
        RecipeError: When it is 2**62 or more, below zero or above.
    """
    complain([("seed", f"is {seed}; it is less than 2**62")] if abs(seed) >= 2**62 else [], op)


def unreal(x: Tensor) -> bool:
    """Whether ``x`` has a shape only: nothing can be drawn for it, and no buffer be read."""
    return x.is_meta or is_fake(x)


def rewind(model: nn.Module) -> None:
    """Let every layer of ``model`` that draws begin anew, so that what follows can be repeated.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", "spatial_shuffle").eval()
        >>> x = torch.rand(1, 3, 64, 64)
        >>> first, second = model(x), model(x)
        >>> rewind(model)
        >>> torch.equal(model(x), first), torch.equal(first, second)
        (True, False)
    """
    for module in model.modules():
        if isinstance(module, Drawing):
            module.steps.zero_()


@torch.no_grad()
def average_outputs(model: nn.Module, images: Tensor, passes: int = 10) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what a model with random layers answers, over several forward passes.

    Args:
        model: In the mode whose draws are meant; its mode stays.
        images: (N, C, H, W).
        passes: Forward passes, at least 2 for a spread.

    Returns:
        Mean and standard deviation (over ``passes - 1``), each shaped as the model's output.

    Raises:
        AnalysisError: When there are fewer than 2 passes, or the model does not answer one tensor.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", "channel_shuffle").eval()
        >>> mean, spread = average_outputs(model, torch.rand(2, 3, 64, 64), passes=3)
        >>> mean.shape == spread.shape == (2, 1000), bool((spread > 0).any())
        (True, True)
    """
    if passes < 2:
        raise AnalysisError(f"passes is {passes}; a spread needs at least 2 forward passes")
    answers = [model(images) for _ in range(passes)]
    if not isinstance(answers[0], Tensor):
        raise AnalysisError(
            f"{type(model).__name__} answers a {type(answers[0]).__name__}, no tensor to average; wrap it in a module "
            "that answers one tensor"
        )
    outputs = torch.stack(answers)
    return outputs.mean(0), outputs.std(0)
