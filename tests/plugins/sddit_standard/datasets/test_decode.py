"""Every conversion that `decode` documents, each on an image whose levels are known."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sddit.errors import SdditError
from sddit_standard.datasets import decode as module
from sddit_standard.datasets.decode import centre_crop, decode

RANDOM = np.random.default_rng(0)


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seen(image: Image.Image, *, channels: int = 3, kind: str = "PNG", **options: Any) -> NDArray[np.uint8]:
    return decode(stored(image, kind, **options), name="x", size=image.height, channels=channels)


def code_of(data: bytes, size: int = 8) -> str:
    with pytest.raises(SdditError) as refused:
        decode(data, name="x", size=size, channels=3)
    return refused.value.problems[0].code


def noise(*shape: int) -> NDArray[np.uint8]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def test_rgb_and_grey_pass_unchanged() -> None:
    rgb, grey = noise(8, 8, 3), noise(8, 8)
    assert np.array_equal(seen(Image.fromarray(rgb)), rgb.transpose(2, 0, 1))
    assert not np.array_equal(seen(Image.fromarray(rgb)), rgb[:, ::-1].transpose(2, 0, 1))
    assert np.array_equal(seen(Image.fromarray(grey), channels=1), grey[None])
    assert np.array_equal(seen(Image.fromarray(grey)), np.stack([grey] * 3))


def test_colour_becomes_grey_by_itu_601() -> None:
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    assert np.unique(seen(image, channels=1)).tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (8, 8), (0, 100, 200, 128))
    expected = [round(c * 128 / 255 + 255 * 127 / 255) for c in (0, 100, 200)]
    np.testing.assert_allclose(seen(half)[:, 0, 0], expected, atol=1)
    clear_grey = Image.new("LA", (8, 8), (0, 0))
    assert np.unique(seen(clear_grey, channels=1)).tolist() == [255]
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((0, 0), 1)
    transparent = seen(palette, transparency=0)
    assert transparent[:, 1, 1].tolist() == [255, 255, 255]
    assert transparent[:, 0, 0].tolist() == [40, 50, 60]
    assert seen(palette)[:, 1, 1].tolist() == [10, 20, 30]
    key = Image.new("RGB", (8, 8), (1, 2, 3))
    assert np.unique(seen(key, transparency=(1, 2, 3))).tolist() == [255]


def test_black_and_white_and_cmyk_are_converted() -> None:
    assert np.unique(seen(Image.new("1", (8, 8), 1))).tolist() == [255]
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = seen(ink, kind="JPEG", quality=100)[:, 0, 0]
    np.testing.assert_allclose(red, [255, 0, 0], atol=3)
    np.testing.assert_allclose(seen(ink, kind="TIFF")[:, 0, 0], [255, 0, 0])


def test_sixteen_bits_are_rounded_to_eight() -> None:
    levels = np.array([[0, 128, 129, 257], [65535, 65406, 65407, 32768]] * 2, dtype=np.uint16)
    expected = [[0, 0, 1, 1], [255, 254, 255, 128]] * 2  # v / 257, halves up
    assert seen(Image.fromarray(levels), channels=1)[0].tolist() == expected
    assert seen(Image.fromarray(levels), kind="TIFF")[2].tolist() == expected


def test_the_camera_s_orientation_is_obeyed() -> None:
    levels = noise(8, 8)
    tag = Image.Exif()
    tag[0x0112] = 6  # the image was taken a quarter turn to the left: turn it clockwise
    turned = seen(Image.fromarray(levels), channels=1, exif=tag)
    assert np.array_equal(turned[0], np.rot90(levels, -1))
    assert not np.array_equal(turned[0], levels)


def test_an_animation_gives_its_first_frame() -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    assert seen(first, kind="GIF", save_all=True, append_images=[second])[:, 0, 0].tolist() == [255, 0, 0]


def test_the_crop_halves_then_scales_then_cuts() -> None:
    columns = np.repeat(np.arange(24, dtype=np.uint8) * 10, 16).reshape(24, 16).T  # [16, 24], equal rows
    levels = seen_at(columns, size=4)
    # halved twice to 4 x 6: means of 4 columns, 15 + 40 k; already 4 high, so the bicubic step changes nothing; cut 1
    # and 1
    assert levels.tolist() == [[55, 95, 135, 175]] * 4
    assert seen_at(columns, size=16).tolist() == columns[:, 4:20].tolist()


def seen_at(levels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return decode(stored(Image.fromarray(levels)), name="x", size=size, channels=1)[0]


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40))
def test_the_crop_always_has_the_size_that_was_asked(width: int, height: int, size: int) -> None:
    if max(width, height) <= module.MAX_ASPECT_RATIO * min(width, height):
        assert centre_crop(Image.new("L", (width, height), 77), size).size == (size, size)
        assert np.unique(centre_crop(Image.new("L", (width, height), 77), size)).tolist() == [77]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_cut_of_a_file_is_refused(kind: str) -> None:
    whole = stored(Image.fromarray(noise(32, 32, 3)), kind)
    for end in range(0, len(whole) - 20, len(whole) // 12):
        assert code_of(whole[:end]) == "SD-D301"
    assert decode(whole, name="x", size=8, channels=3).shape == (3, 8, 8)


def test_text_and_unknown_formats_are_refused() -> None:
    assert code_of(b"hello") == "SD-D301"
    assert code_of(stored(Image.new("L", (8, 8)), "ICO")) == "SD-D301"


def test_the_message_names_no_object_in_memory() -> None:
    with pytest.raises(SdditError) as refused:
        decode(b"hello", name="x", size=8, channels=3)
    assert refused.value.problems[0].got == "UnidentifiedImageError: cannot identify image file"


def test_odd_kinds_of_pixel_are_refused() -> None:
    assert code_of(stored(Image.fromarray(np.zeros((8, 8), dtype=np.float32)), "TIFF")) == "SD-D306"
    assert code_of(stored(Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)), "TIFF")) == "SD-D306"
    assert code_of(stored(Image.new("L", (201, 10)))) == "SD-D306"
    assert decode(stored(Image.new("L", (200, 10))), name="x", size=8, channels=3).shape == (3, 8, 8)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8193, 10_000, 100_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    assert code_of(bomb(side, side)) == "SD-D310"
    assert code_of(bomb(64, 64)) == "SD-D301"


def deep(highest: int, kind: str = "PNG", *, dtype: type = np.uint16) -> bytes:
    """A grey file of 16 or 32 bits with levels from 0 to `highest`."""
    levels = np.linspace(0, highest, 64).round().astype(dtype).reshape(8, 8)
    return stored(Image.fromarray(levels), kind)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_a_deep_file_that_uses_a_part_of_its_range_is_refused(bits: int, kind: str, dtype: type) -> None:
    data = deep(2**bits - 1, kind, dtype=dtype)
    with pytest.raises(SdditError) as refused:
        decode(data, name="x", size=8, channels=1)
    [problem] = refused.value.problems
    assert problem.code == "SD-D315"
    assert f"dataset.bits = {bits}" in problem.fix
    levels = decode(data, name="x", size=8, channels=1, bits=bits)
    assert levels.ravel().tolist() == [round(v / (2**bits - 1) * 255) for v in np.linspace(0, 2**bits - 1, 64).round()]
    assert decode(data, name="x", size=8, channels=1, bits=16).max() < 128  # a dark image, if the user says so


def test_a_deep_file_that_uses_its_range_and_a_black_one_are_read() -> None:
    assert decode(deep(40_000), name="x", size=8, channels=1).max() == round(40_000 / 257)
    assert decode(deep(0), name="x", size=8, channels=1).max() == 0


def test_levels_above_the_stated_bits_are_refused() -> None:
    with pytest.raises(SdditError) as refused:
        decode(deep(4096), name="x", size=8, channels=1, bits=12)
    assert refused.value.problems[0].code == "SD-D315"
    assert decode(deep(4095), name="x", size=8, channels=1, bits=12).max() == 255


def test_few_bits_in_an_eight_bit_file_are_scaled_only_where_stated() -> None:
    data = stored(Image.fromarray(np.array([[0, 5], [10, 15]] * 2).repeat(2, 1).astype(np.uint8)))
    assert decode(data, name="x", size=4, channels=1, bits=4)[0, :2, ::2].tolist() == [[0, 85], [170, 255]]
    assert decode(data, name="x", size=4, channels=1, bits=12).max() == 15  # above 8 it concerns deep files only
    assert decode(data, name="x", size=4, channels=1).max() == 15


def colour_16(highest: int, *, alpha: bool = False) -> bytes:
    """A PNG of 16 bits a colour, which Pillow cannot write; with `alpha`, opaque."""
    levels = np.linspace(0, highest, 8 * 8 * 3).round().reshape(8, 8, 3)
    if alpha:
        levels = np.concatenate([levels, np.full((8, 8, 1), 65535)], axis=2)
    rows = levels.astype(">u2").reshape(8, -1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">2I5B", 8, 8, 16, 6 if alpha else 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("alpha", [False, True])
def test_deep_colour_that_uses_a_part_of_its_range_is_refused(alpha: bool) -> None:
    assert code_of(colour_16(4095, alpha=alpha)) == "SD-D315"
    with pytest.raises(SdditError, match="SD-D315"):  # the lower bits are lost
        decode(colour_16(4095, alpha=alpha), name="x", size=8, channels=3, bits=12)
    assert decode(colour_16(4095, alpha=alpha), name="x", size=8, channels=3, bits=16).max() == 4095 >> 8
    assert decode(colour_16(65535, alpha=alpha), name="x", size=8, channels=3).max() == 255


def test_a_colour_key_of_a_deep_grey_file_is_transparent() -> None:
    levels = np.array([[0, 65535], [1000, 40000]], dtype=np.uint16).repeat(4, 0).repeat(4, 1)
    keyed = decode(stored(Image.fromarray(levels), transparency=1000), name="x", size=8, channels=1)[0]
    assert keyed[4, 0] == 255
    assert keyed[0, 0] == 0
