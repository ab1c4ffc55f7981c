"""Decode an image file to a square uint8 array. Every conversion is listed here. Torch-free.

    orientation        the EXIF tag is obeyed
    transparency       composited on white (RGBA, LA, a palette or a colour key)
    palette, CMYK, 1   converted to RGB, or to grey by the weights of ITU-R 601
    deep grey          16 and 32-bit files: levels of `bits` bits are scaled to 8 bits, rounded
    animation          the first frame
    size               ADM's crop (arXiv:2105.05233): halved with a box filter while at least twice too large, scaled
                       with a bicubic filter until the shorter side fits, then cut at the centre

Anything else (floating-point grey, LAB, a strip more than 20 times as long as wide) is refused. So is a file that holds
its levels in a part of its range, as cameras and scanners store 10, 12 or 14 bits in 16, unless `bits` says so: at full
range it would be nearly black.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sddit.errors import SdditError, error

CROP = "adm"  # the name of `centre_crop`, see `DataFacts.crop`
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset((".bmp", ".gif", ".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))
MAX_PIXELS = 2**26
MAX_ASPECT_RATIO = 20
MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"))
DEEP_GREY = frozenset(("I;16", "I;16L", "I;16B", "I;16N", "I"))
BITS_PER_SAMPLE = 258  # a TIFF tag


def decode(data: bytes, *, name: str, size: int, channels: int, bits: int | None = None) -> NDArray[np.uint8]:
    """Return the image in `data` as levels [channels, size, size]. `name` is for messages.

    `bits` is the number of bits that levels really have, where that is not the full range of the file. Above 8 it
    concerns files of more than 8 bits only.

    Raises SdditError: SD-D301 (cannot be decoded), SD-D306 (a kind that is not converted), SD-D310 (too many pixels),
    SD-D315 (levels that do not fit `bits`, or use a part of their range).
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_large(image, name)  # from the header: nothing is decoded yet
            deep = _has_deep_channels(image, data)
            plain = _eight_bit(ImageOps.exif_transpose(image), name, bits, deep)
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


def _has_deep_channels(image: Image.Image, data: bytes) -> bool:
    """Return whether Pillow reduces 16-bit channels to their upper 8 bits, as it does for colour in PNG and TIFF."""
    if image.mode in DEEP_GREY:
        return False
    if image.format == "PNG":
        return data[24] == 16  # bit depth in the header (ISO/IEC 15948, 11.2.2)
    tags = getattr(image, "tag_v2", {})
    return bool(16 in np.atleast_1d(tags.get(BITS_PER_SAMPLE, 8)))


def _eight_bit(image: Image.Image, name: str, bits: int | None, deep: bool) -> Image.Image:
    """Return the image without transparency, in a mode of eight bits a channel that Pillow converts to grey and RGB."""
    key = image.info.get("transparency")
    if image.mode in DEEP_GREY:
        levels = np.asarray(image).astype(np.int64)
        if levels.min() >= 0 and levels.max() <= 65535:
            eight = _scaled(levels, bits or 16, name, stated=bits is not None)
            return Image.fromarray(np.where(levels == key, np.uint8(255), eight))  # a colour key is transparent
    if image.mode not in MODES:
        raise error(
            "SD-D306",
            f"{name} holds a kind of pixel that is not converted",
            where=name,
            got=f"Pillow's mode {image.mode}",
            expect="grey, RGB, palette, CMYK or 16-bit grey",
            fix="save it as an 8-bit PNG",
        )
    if deep and bits != 16:  # 16 says that the image really is that dark
        colours = np.asarray(image.convert("RGBA"))[..., :3]  # opaque pixels have the highest alpha
        fix = (
            "save it as an 8-bit PNG: of 16-bit colours the upper 8 bits are read; dataset.bits = 16 reads a dark image"
        )
        _refuse_partial_range(colours, 8, name, fix)
    if image.mode in {"LA", "PA", "RGBA"} or key is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    plain = image.convert("RGB") if image.mode in {"P", "CMYK", "YCbCr"} else image
    if bits is None or bits >= 8 or plain.mode == "1":
        return plain
    return Image.fromarray(_scaled(np.asarray(plain).astype(np.int64), bits, name, stated=True))


def _scaled(levels: NDArray[np.int64], bits: int, name: str, *, stated: bool) -> NDArray[np.uint8]:
    """Return levels of 0 to 2^bits - 1 scaled to 0 to 255, halves rounded up."""
    white = 2**bits - 1
    if levels.max() > white:
        raise error(
            "SD-D315",
            f"{name} has levels above those of {bits} bits",
            where=name,
            got=f"levels up to {levels.max():,}",
            expect=f"at most {white:,}",
            fix=f"dataset.bits = {int(levels.max()).bit_length()}, or convert this file",
        )
    if not stated:
        likely = next(depth for depth in (8, 10, 12, 14, 16) if levels.max() < 2**depth)
        narrower = f"dataset.bits = {likely}; " if likely < 16 else "dataset.bits = "
        _refuse_partial_range(levels, bits, name, f"{narrower}16 if the image really is that dark")
    eight: NDArray[np.uint8] = ((levels * 255 + white // 2) // white).astype(np.uint8)
    return eight


def _refuse_partial_range(levels: NDArray[Any], bits: int, name: str, fix: str) -> None:
    """Raise SD-D315 if all levels are in the lower half of the range of `bits` bits; one black image may be."""
    highest, white = int(levels.max()), 2**bits - 1
    if 0 < highest <= white // 2:
        raise error(
            "SD-D315",
            f"{name} uses a part of the range of its 16 bits, and would be darker than it is",
            where=name,
            got=f"levels up to {highest:,} of {white:,}",
            expect="levels above the half, or the number of bits that they have",
            fix=fix,
        )


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
