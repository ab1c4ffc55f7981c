"""Noto emoji at 64x64 in one archive, and at 32x32 derived from it. No torch.

`assets/emoji.npz` holds for each image its pixels, its class, its code points, whether it is a skin variant, and
whether it is in the test split. All images of one base code point are in the same split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sddit.interfaces import DataFacts, Split
from sddit_standard.datasets.embedded import ASSETS, Table, embedded_facts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZE = 64
"""Height and width of the images in the archive."""

FLAGS = "Flags"

CLASS_NAMES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    FLAGS,
)
"""Categories of Unicode. Flags are the last one, so that the others keep their numbers without them."""


def emoji_facts(*, size: int, flags: bool, skin_variants: bool) -> DataFacts:
    """Return the facts of one selection, without reading images."""
    return embedded_facts(facts_key(size=size, flags=flags, skin_variants=skin_variants))


def facts_key(*, size: int, flags: bool, skin_variants: bool) -> str:
    """Return the name of a selection in `facts.json`, such as `emoji-32-flags`."""
    return f"emoji-{size}{'-flags' * flags}{'-skin_variants' * skin_variants}"


def emoji_table(split: Split, *, size: int, flags: bool, skin_variants: bool) -> Table:
    """Return the images and labels of one split of a selection."""
    import numpy as np

    with np.load(ASSETS / "emoji.npz", allow_pickle=False) as archive:
        return select(archive, split, size=size, flags=flags, skin_variants=skin_variants)


def select(archive: Any, split: Split, *, size: int, flags: bool, skin_variants: bool) -> Table:
    """Return one split of a selection from the arrays of the archive, by name."""
    import numpy as np

    chosen = archive["held_out"] == (split == "test")
    if not flags:
        chosen &= archive["labels"] != CLASS_NAMES.index(FLAGS)
    if not skin_variants:
        chosen &= ~archive["skin_variant"]
    images = archive["images"][chosen]  # [n, 64, 64, 3]
    images = images if size == SIZE else halved(images)
    return Table(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), archive["labels"][chosen].astype(np.int64))


def halved(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images [n, 2H, 2W, C] as [n, H, W, C]: each level is the mean of 2x2 levels, halves rounded up."""
    import numpy as np

    count, height, width, channels = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2, channels)
    means: NDArray[np.uint8] = ((blocks.sum(axis=(2, 4), dtype=np.uint16) + 2) // 4).astype(np.uint8)
    return means
