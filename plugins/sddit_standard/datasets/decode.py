"""Decode an image file to a square uint8 array. Every conversion is listed here. Torch-free.

    orientation        the EXIF tag is obeyed
    transparency       composited on white (RGBA, LA, a palette or a colour key)
    palette, CMYK, 1   converted to RGB, or to grey by the weights of ITU-R 601
    16-bit grey        divided by 257, rounded
    animation          the first frame
    size               ADM's crop (arXiv:2105.05233): halved with a box filter while at least twice too large, scaled
                       with a bicubic filter until the shorter side fits, then cut at the centre

Anything else (32-bit and floating-point grey, LAB, a strip more than 20 times as long as wide) is refused.
"""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sddit.errors import SdditError, error

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset((".bmp", ".gif", ".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))
MAX_PIXELS = 2**26
MAX_ASPECT_RATIO = 20
MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"))
GREY_16 = frozenset(("I;16", "I;16L", "I;16B", "I;16N", "I"))


def decode(data: bytes, *, name: str, size: int, channels: int) -> NDArray[np.uint8]:
    """Return the image in `data` as levels [channels, size, size]. `name` is for messages.

    Raises SdditError: SD-D301 (cannot be decoded), SD-D306 (a kind that is not converted), SD-D310 (too many pixels).
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_large(image, name)  # from the header: nothing is decoded yet
            plain = _eight_bit(ImageOps.exif_transpose(image), name)
            square = centre_crop(plain.convert("L" if channels == 1 else "RGB"), size)
    except SdditError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name, "more pixels than can be") from None
    except Exception as broken:  # Pillow's readers raise any exception on a damaged file
        raise error(
            "SD-D301",
            f"cannot decode {name}",
            where=name,
            got=_said(broken)[:200],
            expect="a whole image file: " + ", ".join(FORMATS),
            fix="replace the file or take it out",
        ) from None
    levels = np.asarray(square, dtype=np.uint8)
    return levels[None] if channels == 1 else np.ascontiguousarray(levels.transpose(2, 0, 1))


def _said(broken: Exception) -> str:
    """Return Pillow's message without the address of the bytes it read."""
    return re.sub(r"\s*<_io\.BytesIO object at \w+>", "", f"{type(broken).__name__}: {broken}")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the largest centred square, scaled to `size` x `size` as ADM does it."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.size)
    width, height = round(image.width * factor), round(image.height * factor)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Return the image without transparency, in a mode of eight bits a channel that Pillow converts to grey and RGB."""
    if image.mode in GREY_16:
        levels = np.asarray(image).astype(np.int64)
        if levels.min() >= 0 and levels.max() <= 65535:
            return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode not in MODES:
        raise error(
            "SD-D306",
            f"{name} holds a kind of pixel that is not converted",
            where=name,
            got=f"Pillow's mode {image.mode}",
            expect="grey, RGB, palette, CMYK or 16-bit grey",
            fix="save it as an 8-bit PNG",
        )
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB") if image.mode in {"P", "CMYK", "YCbCr"} else image


def _refuse_large(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width}x{height} pixels")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise error(
            "SD-D306",
            f"{name} is a strip; a square cut from it shows almost nothing",
            where=name,
            got=f"{width}x{height} pixels",
            expect=f"sides that differ by a factor of {MAX_ASPECT_RATIO} at most",
            fix="cut the image yourself or take it out",
        )


def _too_large(name: str, got: str) -> SdditError:
    return error(
        "SD-D310",
        f"{name} has too many pixels to be decoded safely",
        where=name,
        got=got,
        expect=f"at most {MAX_PIXELS:,} pixels",
        fix="scale the image down or take it out",
    )
