"""Networks whose code does what makes replaying module calls hard; each is small, and each line of it occurs in use."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Odd(nn.Module):
    """Three convs ``a``, ``b`` and ``c`` of equal width, a classifier, and code between them that a test gives."""

    def __init__(self, code: Callable[["Odd", Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.a, self.b, self.c = (nn.Conv2d(6, 6, 3, 1, 1) for _ in range(3))
        for name, part in parts.items():
            self.add_module(name, part)
        self.head = nn.Linear(6, 10)
        self.code = code
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.images = x
        return self.head(self.code(self, self.stem(x)).mean((2, 3)))


def adds_in_place(m: Odd, x: Tensor) -> Tensor:
    x += m.a(x)
    y = m.b(x)
    y += x
    return m.c(y).mul_(2).add_(x)


def ignores_the_answer(m: Odd, x: Tensor) -> Tensor:
    """An activation in place whose answer nobody takes."""
    y = m.a(x)
    m.relu(y)
    z = m.b(y)
    m.relu(z)
    return m.c(z) + y


def writes_its_input(m: Odd, x: Tensor) -> Tensor:
    """A skip that sees what the activation did to it."""
    return m.c(m.relu(m.b(m.relu(m.a(x)))) + x) + m.relu(x)


def runs_one_conv_three_times(m: Odd, x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + m.a(torch.tanh(x))
    return m.c(m.b(x))


def shares_a_weight(m: Odd, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x).relu()).relu())


def reads_a_weight_itself(m: Odd, x: Tensor) -> Tensor:
    """The classifier of ``m`` is a conv's weight, used by the code of its parent."""
    y = F.conv2d(m.b(x), m.a.weight, m.a.bias, padding=1)
    return m.c(y.relu())


def reads_a_weight_before_the_call(m: Odd, x: Tensor) -> Tensor:
    return m.c(m.b(x * m.a.weight.mean()) + m.a(x))


def hands_on_dicts(m: Odd, x: Tensor) -> Tensor:
    maps = m.split({"map": x})
    return m.c(m.join(maps["left"], maps["rest"][0], gain=2.0))


class Split(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Any]:
        return {"left": self.left(maps["map"]), "rest": (self.right(maps["map"]), 3)}


class Join(nn.Module):
    def forward(self, x: Tensor, y: Tensor, gain: float = 1.0) -> Tensor:
        return x * gain + y


def attends(m: Odd, x: Tensor) -> Tensor:
    """Attention reads the weights of its projection by itself."""
    tokens = m.a(x).flatten(2).transpose(1, 2)
    y, _ = m.attention(tokens, tokens, tokens, need_weights=False)
    return m.c((tokens + y).transpose(1, 2).reshape(x.shape) + m.b(x))


def fills_a_list(m: Odd, x: Tensor) -> Tensor:
    """Modules that answer nothing, and add to what they are given."""
    maps = [x]
    for layer in (m.layer1, m.layer2, m.layer3):
        layer(maps)
    return maps[-1] + maps[1]


class Append(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, maps: list[Tensor]) -> None:
        maps.append(self.conv(maps[-1]).relu())


def keeps_a_map_on_itself(m: Odd, x: Tensor) -> Tensor:
    m.keep(m.a(x))
    y = m.b(x)
    return m.c(m.recall(torch.ones(1)) + y)


class Keep(nn.Module):
    """Remembers a map, and a second module answers it: no tensor that tells is handed over."""

    def __init__(self, other: "Keep | None" = None) -> None:
        super().__init__()
        self.other, self.map = [other], None

    def forward(self, x: Tensor) -> Tensor:
        source = self.other[0]
        if source is None:
            self.map = x
            return x
        return source.map * x


class Reads(nn.Module):
    """Computes with the weight of a conv that is none of its children."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.held = [conv]  # not registered

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.held[0].weight, padding=1)


def reads_another_units_weight(m: Odd, x: Tensor) -> Tensor:
    return m.c(m.a(m.reads(x)) + m.b(x))


def squeezes(m: Odd, x: Tensor) -> Tensor:
    """Works for several images only, as code with ``squeeze()`` does."""
    y = m.c(m.b(m.a(x))).mean((2, 3), keepdim=True).squeeze()
    return y[:, :, None, None] if len(x) > 1 else y[None, :, None, None]


def writes_on_the_images(m: Odd, x: Tensor) -> Tensor:
    """The stem has read them, but a second reading would see what was written."""
    m.images.sub_(1).mul_(2)
    return m.c(m.b(m.a(x))) + m.images.mean()


def statistics_of_the_batch(m: Odd, x: Tensor) -> Tensor:
    """A norm without running statistics: what is computed depends on which images come together."""
    return m.c(m.norm(m.b(m.a(x))).relu())


def remembers_and_reads_constants(m: Odd, x: Tensor) -> Tensor:
    """Remembers what it computed of a weight, and goes through a dict of constants."""
    if "mean" not in m._memory:
        m._memory["mean"] = m.b.weight.abs().mean()
    for value in m.constants.values():
        x = x + value
    return m.c(m.b(m.a(x))) * m._memory["mean"] + m.constants.get("shift")


def odd(code: Callable[[Odd, Tensor], Tensor]) -> Odd:
    """The network whose code is ``code``, with the parts that it needs."""
    net = Odd(code)
    if code in (ignores_the_answer, writes_its_input):
        net.relu = nn.ReLU(inplace=True)
    if code is shares_a_weight:
        net.b.weight = net.a.weight
    if code is hands_on_dicts:
        net.split, net.join = Split(net.a, net.b), Join()
        del net.a, net.b
    if code is attends:
        net.attention = nn.MultiheadAttention(6, 2, batch_first=True)
    if code is fills_a_list:
        net.layer1, net.layer2, net.layer3 = Append(net.a), Append(net.b), Append(net.c)
        del net.a, net.b, net.c
    if code is keeps_a_map_on_itself:
        net.keep = Keep()
        net.recall = Keep(net.keep)
    if code is remembers_and_reads_constants:
        net._memory, net.constants = {}, {"shift": torch.tensor(0.5), "more": torch.tensor(0.1)}
    if code is statistics_of_the_batch:
        net.norm = nn.BatchNorm2d(6, track_running_stats=False)
    if code is reads_another_units_weight:
        net.reads = Reads(net.b)
    return net.eval()
