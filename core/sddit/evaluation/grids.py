"""Images of samples: a row for each class, or a column for each moment of training."""

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

LEGIBLE = 48  # pixels: smaller images are enlarged by a whole factor until their longer side has as many
GAP = 3
MARGIN = 10
PAPER, INK = (255, 255, 255), (70, 70, 70)
LONGEST_NAME = 24  # letters


def grid(images: Tensor, columns: int, row_names: Sequence[str] = ()) -> Image.Image:
    """Images in rows of `columns`, with the rows' names at their left.

    Args:
        images: [n, 3, H, W] uint8, row by row; the last row may be short.
        columns: images of one row.
        row_names: a name for each row, or none.
    """
    cells = _cells(images)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return _sheet(rows, row_names=row_names)


def png(image: Image.Image) -> bytes:
    """Return the bytes of a PNG file, the same for the same image."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _cells(images: Tensor) -> list[NDArray[np.uint8]]:
    """[n, 3, H, W] -> n arrays [H, W, 3], enlarged without smoothing: a pixel stays a square."""
    pixels: NDArray[Any] = np.asarray(images.cpu())
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
        raise ValueError(f"expected uint8 images [n, 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
    factor = -(-LEGIBLE // max(pixels.shape[2:]))  # rounded up
    large = pixels.transpose(0, 2, 3, 1).repeat(factor, axis=1).repeat(factor, axis=2)
    return list(large)


def _sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], row_names: Sequence[str] = ()) -> Image.Image:
    """Cells on white paper, with names at the left of the rows."""
    if row_names and len(row_names) != len(rows):
        raise ValueError(f"{len(rows)} rows but {len(row_names)} names")
    height, width = rows[0][0].shape[:2]
    font = ImageFont.load_default(size=13)
    texts = [_short(name) for name in row_names]
    left = MARGIN + max((_width(text, font) + MARGIN for text in texts), default=0)
    step_x, step_y = width + GAP, height + GAP
    columns = max(len(row) for row in rows)
    size = (left + columns * step_x - GAP + MARGIN, len(rows) * step_y - GAP + 2 * MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            sheet.paste(Image.fromarray(cell), (left + j * step_x, MARGIN + i * step_y))
    for i, text in enumerate(texts):
        pen.text((left - MARGIN, MARGIN + i * step_y + height // 2), text, fill=INK, font=font, anchor="rm")
    return sheet


def _short(name: str) -> str:
    """Return a name that fits: harmless letters, not too many of them."""
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _width(text: str, font: Any) -> int:
    return int(np.ceil(font.getlength(text)))
