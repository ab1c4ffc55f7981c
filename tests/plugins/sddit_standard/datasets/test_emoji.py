"""Test that the emoji are split without leaks, and that every key selects what it says."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sddit.interfaces import Split
from sddit_standard.datasets.embedded import ASSETS, Table, fingerprint
from sddit_standard.datasets.emoji import CLASS_NAMES, emoji_facts, emoji_table, halved, select
from sddit_standard.datasets.image_datasets import emoji
from sddit_standard.datasets.params import EmojiParams

TOOL = Path(__file__).parents[4] / "tools" / "make_emoji_asset.py"
PLAIN: dict[str, Any] = {"size": 32, "flags": False, "skin_variants": False}
SELECTIONS = [PLAIN | {"flags": flags, "skin_variants": skin} for flags in (False, True) for skin in (False, True)]
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}


@pytest.fixture(scope="module")
def archive() -> dict[str, NDArray[Any]]:
    with np.load(ASSETS / "emoji.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def both(archive: Mapping[str, NDArray[Any]], **keys: Any) -> dict[Split, Table]:
    return {split: select(archive, split, **keys) for split in ("train", "test")}


@pytest.mark.parametrize("keys", [*SELECTIONS, PLAIN | {"size": 64}], ids=str)
def test_the_stored_facts_are_those_of_the_images(archive: dict[str, NDArray[Any]], keys: dict[str, Any]) -> None:
    facts, tables = emoji_facts(**keys), both(archive, **keys)
    train, test = tables["train"], tables["test"]
    assert (facts.train_size, facts.test_size) == (len(train.labels), len(test.labels))
    assert train.images.shape[1:] == test.images.shape[1:] == facts.image == (3, keys["size"], keys["size"])
    assert facts.fingerprint == fingerprint(train, test) != fingerprint(replace(train, images=255 - train.images), test)
    unit = 2 * train.images.astype(np.float32) / 255 - 1
    np.testing.assert_allclose(facts.mean, unit.mean(axis=(0, 2, 3), dtype=np.float64), atol=1e-7)
    np.testing.assert_allclose(facts.std, unit.std(axis=(0, 2, 3), dtype=np.float64), atol=1e-7)
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(facts.num_classes))
    assert facts.domain == "emoji"


def test_every_selection_has_facts_of_its_own() -> None:
    facts = [emoji_facts(**keys, size=size) for size in (32, 64) for keys in map(without_size, SELECTIONS)]
    assert len({one.fingerprint for one in facts}) == 8


def without_size(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key != "size"}


def base(code: str) -> str:
    """Return the first code point, of a flag both; the three genders are one; two shaking hands are a handshake."""
    first = code.split("-")[0]
    if "1F1E6" <= first <= "1F1FF":
        return code
    if "-200D-1FAF2-" in code:
        return "1F91D"
    return "1F9D1" if first in {"1F468", "1F469"} else first


def bases(codes: NDArray[np.str_]) -> set[str]:
    return {base(code) for code in codes.tolist()}


def test_no_base_code_point_is_in_both_splits(archive: dict[str, NDArray[Any]]) -> None:
    codes, held_out = archive["codes"], archive["held_out"]
    assert len(set(codes.tolist())) == len(codes) == 3781
    assert not bases(codes[held_out]) & bases(codes[~held_out])
    images = archive["images"]
    assert not {image.tobytes() for image in images[held_out]} & {image.tobytes() for image in images[~held_out]}
    # the first skin variant that is held out shares its base with training images once it is moved there
    moved = held_out.copy()
    moved[np.flatnonzero(held_out & archive["skin_variant"])[0]] = False
    assert bases(codes[moved]) & bases(codes[~moved])


def test_skin_variants_are_those_with_a_skin_tone(archive: dict[str, NDArray[Any]]) -> None:
    toned = [bool(SKIN_TONES & set(code.split("-"))) for code in archive["codes"].tolist()]
    assert archive["skin_variant"].tolist() == toned
    assert sum(toned) == 1875
    assert set(archive["labels"][archive["skin_variant"]].tolist()) <= {1, CLASS_NAMES.index("Activities")}


def test_the_test_split_is_balanced(archive: dict[str, NDArray[Any]]) -> None:
    tables = both(archive, **PLAIN | {"flags": True})
    assert np.bincount(tables["test"].labels).tolist() == [20] * 9
    assert len(set(np.bincount(tables["train"].labels).tolist())) > 1


def test_flags_and_skin_variants_are_added_and_change_nothing_else(archive: dict[str, NDArray[Any]]) -> None:
    def shown(split: Split, **changed: Any) -> list[tuple[int, bytes]]:
        table = select(archive, split, **PLAIN | changed)
        return [(int(label), image.tobytes()) for label, image in zip(table.labels, table.images, strict=True)]

    for split in ("train", "test"):
        plain, flags, skin = shown(split), shown(split, flags=True), shown(split, skin_variants=True)
        assert [one for one in flags if one[0] != CLASS_NAMES.index("Flags")] == plain
        assert len(flags) > len(plain)
        assert set(plain) < set(skin)
    assert emoji_facts(**PLAIN).class_names == CLASS_NAMES[:-1]
    assert emoji_facts(**PLAIN | {"flags": True}).class_names == CLASS_NAMES


def test_32_pixels_are_rounded_means_of_2x2() -> None:
    image = np.array([[[0], [1], [255], [255]], [[0], [1], [255], [254]]], dtype=np.uint8)[None]  # [1, 2, 4, 1]
    assert halved(image).tolist() == [[[[1], [255]]]]  # 0.5 and 254.75
    large, small = emoji_table("test", **PLAIN | {"size": 64}).images, emoji_table("test", **PLAIN).images
    means = large.reshape(len(large), 3, 32, 2, 32, 2).astype(np.float64).mean(axis=(3, 5))
    assert np.array_equal(small, np.floor(means + 0.5))
    assert not np.array_equal(small, large[:, :, ::2, ::2])


def test_the_data_set_has_the_images_of_its_keys() -> None:
    params = EmojiParams(size=64, flags=True, normalize="standard")
    data = emoji(params, split="test")
    x, labels = data.fetch(range(len(data)))
    table = emoji_table("test", size=64, flags=True, skin_variants=False)
    assert np.array_equal(data.to_images(x).numpy(), table.images)
    assert labels.tolist() == data.labels().tolist() == table.labels.tolist()
    unlabelled = emoji(EmojiParams(labels=False), split="test")
    assert unlabelled.facts.num_classes == 0 and not unlabelled.labels().any()


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_emoji_asset", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def entry(codes: str, category: str, order: int, tones: Iterable[str] = ()) -> dict[str, Any]:
    variants = {tone: {"unified": f"{codes}-{tone}", "image": f"{codes}-{tone}.png"} for tone in tones}
    known = {"unified": codes, "image": f"{codes}.png", "category": category, "sort_order": order}
    return known | ({"skin_variations": variants} if variants else {})


ENTRIES = [
    entry("1F600", "Smileys & Emotion", 3),
    entry("1F601", "Smileys & Emotion", 4),
    entry("1F468-200D-1F692", CLASS_NAMES[1], 1, sorted(SKIN_TONES)),
    entry("1F469-200D-1F692", CLASS_NAMES[1], 2),
    entry("1F44B", CLASS_NAMES[1], 5, sorted(SKIN_TONES)),
    entry("1F3FB", "Component", 6),
]


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    """A package of the same layout with images of one colour each, in the three modes that occur."""
    path = tmp_path / "package.tgz"
    names = [one["image"] for one in ENTRIES]
    names += [variant["image"] for one in ENTRIES for variant in one.get("skin_variations", {}).values()]
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "package/emoji.json", json.dumps(ENTRIES).encode())
        for index, name in enumerate(names):
            image = Image.new(("RGBA", "LA", "P")[index % 3], (64, 64), (index, 128) if index % 3 == 1 else index)
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            add(archive, f"package/img/google/64/{name}", buffer.getvalue())
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_the_tool_reads_the_package_in_order(tool: ModuleType, tarball: Path) -> None:
    arrays = tool.read_emoji(tarball, sha256=sha256(tarball.read_bytes()).hexdigest(), test_per_class=1)
    codes, held_out = arrays["codes"].tolist(), arrays["held_out"]
    assert len(codes) == 15 and codes[0] == "1F468-200D-1F692" and codes[6] == "1F469-200D-1F692"
    assert "1F3FB" not in codes
    assert arrays["labels"].tolist() == [1] * 7 + [0, 0] + [1] * 6
    assert [codes[i] for i in np.flatnonzero(held_out & (arrays["labels"] == 1))] == [
        "1F44B",
        *(f"1F44B-{tone}" for tone in sorted(SKIN_TONES)),
    ]  # man and woman are one base, of two emoji: too many for a test split of one
    assert held_out.sum() == 7
    half = arrays["images"][codes.index("1F601"), 0, 0]  # grey 1 at an opacity of 128 of 255 on white
    assert half.tolist() == [round(1 * 128 / 255 + 127)] * 3
    with pytest.raises(SystemExit, match="has sha256"):
        tool.read_emoji(tarball)


def test_emoji_of_one_image_stay_together(tool: ModuleType) -> None:
    black, white = np.zeros((64, 64, 3), dtype=np.uint8), np.full((64, 64, 3), 255, dtype=np.uint8)
    made = [tool.Emoji("a", "a", 0, False, black), tool.Emoji("b", "b", 0, False, white)]
    assert len(tool.grouped(made)) == 2
    assert len(tool.grouped([*made, tool.Emoji("b-c", "b", 0, False, black)])) == 1
