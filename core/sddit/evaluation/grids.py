"""Draw grids of images, with a name for each row."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sddit.errors import printable

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIDE = 48  # pixels of the longer side: smaller images are enlarged by a whole factor
GAP = 3
MARGIN = 10
LINE = 22  # height of a line of text
BACKGROUND, TEXT = (255, 255, 255), (70, 70, 70)
MAX_LETTERS = 24  # of a name


def grid(images: Tensor, columns: int, row_names: Sequence[str] = (), *, caption: str = "") -> Image.Image:
    """Draw images in rows of `columns` on white, with the rows' names at their left and a caption below.

    Args:
        images: [n, 3, H, W] uint8, row by row; the last row may be short.
        columns: images of one row.
        row_names: a name for each row, or none.
        caption: text below; empty: none.
    """
    cells = _enlarged(images)
    rows = -(-len(cells) // columns)  # rounded up
    if row_names and len(row_names) != rows:
        raise ValueError(f"{rows} rows but {len(row_names)} names")
    names = [printable(name) for name in row_names]
    names = [name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…" for name in names]
    font: Any = ImageFont.load_default(size=13)
    left = MARGIN + max((int(np.ceil(font.getlength(name))) + MARGIN for name in names), default=0)
    height, width = cells[0].shape[:2]
    step_x, step_y = width + GAP, height + GAP
    right, bottom = left + min(columns, len(cells)) * step_x - GAP + MARGIN, rows * step_y - GAP + 2 * MARGIN
    if caption:
        right, bottom = max(right, int(np.ceil(font.getlength(caption))) + 2 * MARGIN), bottom + LINE
    sheet = Image.new("RGB", (right, bottom), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, bottom - LINE), caption, fill=TEXT, font=font)
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        sheet.paste(Image.fromarray(cell), (left + column * step_x, MARGIN + row * step_y))
    for row, name in enumerate(names):
        middle = MARGIN + row * step_y + height // 2
        pen.text((left - MARGIN, middle), name, fill=TEXT, font=font, anchor="rm")
    return sheet


def png(image: Image.Image) -> bytes:
    """Return the bytes of a PNG file, the same for the same image."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _enlarged(images: Tensor) -> NDArray[np.uint8]:
    """Return images [n, 3, H, W] as [n, h, w, 3], enlarged without smoothing: a pixel stays a square."""
    pixels: NDArray[Any] = np.asarray(images.cpu())
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
        raise ValueError(f"expected uint8 images [n, 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
    factor = -(-MIN_SIDE // max(pixels.shape[2:]))  # rounded up
    return pixels.transpose(0, 2, 3, 1).repeat(factor, axis=1).repeat(factor, axis=2)
