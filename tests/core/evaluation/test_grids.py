"""Sample grids: every pixel is where it should be, and names do not hide any."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sddit.evaluation.grids import MIN_SIDE, grid, png


def flat(n: int, size: int = 8) -> Tensor:
    """n images, each of its own colour that is neither paper nor ink."""
    colours = torch.tensor([[10 + i, 100 + i, 200 - i] for i in range(n)], dtype=torch.uint8)
    return colours[:, :, None, None].expand(n, 3, size, size)


def where(image: Image.Image, colour: Tensor) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels of a colour, which must fill that rectangle."""
    ys, xs = np.nonzero((np.asarray(image) == colour.numpy()).all(-1))
    box = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    assert len(xs) == (box[2] - box[0]) * (box[3] - box[1])
    return box


def test_images_stand_row_by_row_and_are_enlarged():
    images = flat(6)
    sheet = grid(images, columns=3)
    boxes = [where(sheet, image[:, 0, 0]) for image in images]
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(MIN_SIDE, MIN_SIDE)}
    assert boxes[0][1] == boxes[1][1] == boxes[2][1] < boxes[3][1] == boxes[5][1]
    assert boxes[0][0] == boxes[3][0] < boxes[1][0] < boxes[2][0]


def test_enlarging_keeps_every_pixel_a_square():
    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(1, 3, 8, 8)
    found = np.asarray(grid(image, columns=1))[10:-10, 10:-10]
    assert (found == image[0].permute(1, 2, 0).repeat_interleave(6, 0).repeat_interleave(6, 1).numpy()).all()
    large = torch.zeros(1, 3, 256, 100, dtype=torch.uint8)
    assert grid(large, columns=1).size == (100 + 20, 256 + 20)


def test_names_stand_left_of_the_images_and_never_on_them():
    images = flat(4)
    bare = grid(images, columns=2)
    named = grid(images, columns=2, row_names=["zero", "a very long name that no one would want to read"])
    indent = named.width - bare.width
    assert indent > 40
    assert (np.asarray(named)[:, indent + 10 :] == np.asarray(bare)[:, 10:]).all()
    assert (np.asarray(named)[:, :indent] != 255).any()
    with pytest.raises(ValueError, match="2 rows but 1 names"):
        grid(images, columns=2, row_names=["one"])


@pytest.mark.parametrize("name", ["", "日本 \U0001f600", "line\nbreak", "\x1b[31mred", "\u202eright to left"])
def test_odd_names_are_drawn_somehow(name):
    assert grid(flat(1), columns=1, row_names=[name]).height == MIN_SIDE + 20


def test_a_short_last_row():
    image = grid(flat(5), columns=3)
    assert image.size == grid(flat(6), columns=3).size


def test_png_is_lossless_and_reproducible():
    image = grid(flat(4), columns=2, row_names=["a", "b"])
    data = png(image)
    assert data == png(grid(flat(4), columns=2, row_names=["a", "b"]))
    assert (np.asarray(Image.open(BytesIO(data))) == np.asarray(image)).all()


def test_other_arrays_are_refused():
    for wrong in (flat(2).float(), flat(2)[:, :1], flat(2)[0], flat(2)[:0]):
        with pytest.raises(ValueError, match="expected uint8 images"):
            grid(wrong, columns=1)
