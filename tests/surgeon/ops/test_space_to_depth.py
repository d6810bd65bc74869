"""The rearrangement against plain indexing, and the geometry against a count of every tap."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from surgeon.errors import RecipeError, RefusedError
from surgeon.ops.space_to_depth import Blocks, Window, block_conv2d, embed, pad_or_crop, space_to_depth


@pytest.mark.parametrize("block", [(1, 1), (2, 2), (3, 1), (2, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_pixel_lands_where_the_docstring_says(block, memory_format):
    bh, bw = block
    x = torch.rand(2, 3, 12, 8).contiguous(memory_format=memory_format)
    y = space_to_depth(x, block)
    assert y.shape == (2, 3 * bh * bw, 12 // bh, 8 // bw)
    for c, dy, dx in itertools.product(range(3), range(bh), range(bw)):
        assert torch.equal(y[:, c * bh * bw + dy * bw + dx], x[:, c, dy::bh, dx::bw])
    assert y.is_contiguous(memory_format=memory_format)


def test_the_order_is_pixel_unshuffles_for_square_blocks():
    x = torch.rand(1, 5, 6, 9)
    assert torch.equal(space_to_depth(x, (3, 3)), F.pixel_unshuffle(x, 3))
    assert not torch.equal(space_to_depth(x, (3, 3)), F.pixel_unshuffle(x.transpose(2, 3).contiguous(), 3).mT)


def test_a_size_that_is_no_multiple_is_refused_with_the_numbers():
    with pytest.raises(RefusedError, match=r"cannot cut 5x4 pixels in blocks of 2x2.*pad first"):
        space_to_depth(torch.rand(1, 1, 5, 4), (2, 2))


WINDOWS = [
    Window(k, s, p, d, same)
    for k, s, p, d in itertools.product((1, 2, 3, 5, 7), (1, 2, 3, 4), (0, 1, 2, 3, 5), (1, 2, 3))
    for same in (False, True)
    if not (same and p)
]


@pytest.mark.parametrize("kernel", ["same", "minimal"])
def test_blocks_hold_every_tap_and_no_kernel_is_larger_than_said(kernel):
    for window in WINDOWS:
        blocks = Blocks.of(window, kernel)
        s, step = window.stride, blocks.dilation
        held = {(j * step - blocks.lead) * s + i for j in range(blocks.kernel) for i in range(s)}
        taps = {i * window.dilation - window.origin for i in range(window.kernel)}
        assert taps <= held, window
        used = {tap // s for tap in taps}
        assert blocks.least == (max(used) - min(used)) // step + 1
        assert blocks.kernel == (blocks.least if kernel == "minimal" else max(window.kernel, blocks.least))
        assert blocks.lead >= 0


def test_known_kernels():
    # papers: k1 p0 and k2 p0 -> 1; k3 p1 -> 2 blocks; k6 p2 -> 3; k7 p3 -> 4; dilation 3 spans four blocks
    known = {(1, 0, 1): (1, 0), (2, 0, 1): (1, 0), (3, 1, 1): (2, 1), (6, 2, 1): (3, 1), (7, 3, 1): (4, 2)}
    known |= {(3, 3, 3): (4, 2), (3, 2, 2): (3, 1)}
    for (k, p, d), expected in known.items():
        blocks = Blocks.of(Window(k, 2, p, d))
        assert (blocks.kernel, blocks.lead) == expected
    same = Blocks.of(Window(3, 2, 1), "same")
    assert (same.kernel, same.lead, same.plans[0]) == (3, 1, (0, 0, 1))  # nothing to pad: the conv's own border
    assert Blocks.of(Window(3, 2, 0), 5) == Blocks(Window(3, 2, 0), 5, 2)
    assert Blocks.of(Window(7, 2, 3), 1).lead == 0  # too small to be exact, for fresh weights


def test_plans_read_the_right_pixels_at_every_size():
    """A ramp of pixel numbers, through one output channel per tap, tells which pixel each tap read."""
    column = Blocks.of(Window(1, 1))
    for window in (w for w in WINDOWS if w.kernel in (1, 3) and w.dilation < 3):
        blocks, k = Blocks.of(window, "same"), window.kernel
        weight = embed(torch.eye(k).view(k, 1, k, 1), blocks, column)
        for size in range(max(1, window.reach + 1 - 2 * window.padding), 14):
            ramp = torch.arange(1.0, size + 1).view(1, 1, size, 1)  # 0 is padding
            read = block_conv2d(ramp, weight, None, blocks, column, 1)[0, :, :, 0]
            for tap in range(k):
                offset = tap * window.dilation - window.pads(size)[0]
                expected = [t * window.stride + offset for t in range(window.outputs(size))]
                assert read[tap].tolist() == [p + 1 if 0 <= p < size else 0 for p in expected], (window, size, tap)


@pytest.mark.parametrize("kernel", ["smal", 0, -1, True, 1.5])
def test_an_unknown_kernel_says_what_is_allowed(kernel):
    with pytest.raises(RecipeError, match=r"kernel=.* is no kernel size.*'same', 'minimal'"):
        Blocks.of(Window(3, 2, 1), kernel)


def test_pad_or_crop_copies_nothing_when_there_is_nothing_to_add():
    x = torch.rand(1, 1, 4, 5)
    assert pad_or_crop(x, (0, 0), (0, 0)) is x
    cropped = pad_or_crop(x, (0, -1), (0, -2))
    assert torch.equal(cropped, x[:, :, :3, :3])
    assert cropped.data_ptr() == x.data_ptr()
    padded = pad_or_crop(x, (1, -1), (2, 1), value=7.0)
    assert torch.equal(padded, F.pad(x, (2, 1, 1, -1), value=7.0))
