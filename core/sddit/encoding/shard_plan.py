"""Plan the shards of an encoding, and keep next to them what they were made of, so that a rerun continues. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sddit.data.codec_record import CodecRecord
from sddit.data.latent_writing import refuse_foreign, shard_name
from sddit.data.latents import INDEX, ImageSource, Index, Shard, pair_of, read_index
from sddit.errors import error
from sddit.interfaces import file_sha256
from sddit.recipes.merge import leaves
from sddit.storage.atomic import read_file, remove_leftovers, replace_file, storage_errors

PLAN = "encoding.json"  # in the folder of the cache, until its index is written
MAX_BYTES = 2**26  # of a shard
MAX_IMAGES = 1024  # of a shard
NUMBER_BYTES = 2  # float16

FlipOption = Literal["none", "both"]


class EncodingPlan(BaseModel):
    """`encoding.json`: everything that the bytes of the shards depend on."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    images: ImageSource
    class_names: tuple[str, ...]
    codec: CodecRecord
    shape: tuple[int, int, int]  # C, h, w of a latent
    flip: FlipOption
    shard_images: int = Field(ge=1)
    device: str  # cpu or cuda, and the version of torch: others round differently

    @property
    def count(self) -> int:
        """Number of images."""
        return self.images.train + self.images.test

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.shard_images)

    def images_of(self, shard: int) -> range:
        """Return the numbers of the images of a shard."""
        start = shard * self.shard_images
        return range(start, min(start + self.shard_images, self.count))

    def identity(self) -> dict[str, Any]:
        """Return what a rerun must share to continue: not where the images are, and nothing that only the index has."""
        images = self.images.model_dump(mode="json", exclude={"settings", "licence", "domain"})
        codec = self.codec.model_dump(mode="json")
        settings = {key: value for key, value in codec["settings"].items() if key not in ("scale", "shift")}
        rest = self.model_dump(mode="json", exclude={"images", "codec"})
        return {"images": images, "codec": {**codec, "settings": settings}, **rest}


class ShardRecord(BaseModel):
    """What is known of a finished shard, in a JSON file next to it until the index is written."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    shard: Shard
    statistics: dict[str, Any]  # of its moments, as JSON


def default_shard_images(shape: tuple[int, int, int], flip: FlipOption) -> int:
    """Return how many images a shard has."""
    row = 2 * prod(shape) * NUMBER_BYTES * pair_of(flip)
    return max(1, min(MAX_IMAGES, MAX_BYTES // row))


def record_path(root: Path, shard: int) -> Path:
    """Return the path of the record of a shard."""
    return (root / shard_name(shard)).with_suffix(".json")


def write_record(root: Path, shard: int, record: ShardRecord) -> None:
    """Write the record of a shard that is written."""
    replace_file(record_path(root, shard), record.model_dump_json().encode() + b"\n")


def read_record(root: Path, shard: int) -> ShardRecord | None:
    """Return the record of a shard; None if there is none that can be read, or not its shard.

    Raises SD-D342 if the shard is not the one that was written.
    """
    try:
        record = ShardRecord.model_validate_json(read_file(record_path(root, shard)))
    except (OSError, ValidationError):
        return None
    path = root / record.shard.file
    if not path.is_file():
        return None
    with storage_errors(path):
        found = file_sha256(path)
    if found != record.shard.sha256:
        raise error(
            "SD-D342",
            f"shard {path.name} was changed after it was encoded",
            where=str(path),
            got=f"sha256 {found}",
            expect=f"sha256 {record.shard.sha256}",
            fix="delete it, then rerun: it is encoded again",
        )
    return record


def begin(root: Path, plan: EncodingPlan) -> None:
    """Write the plan into the folder of the cache, or check that it is the one there.

    Raises SD-D346 if the folder holds another encoding, or files that belong to none.
    """
    if (root / PLAN).is_file():
        _refuse_other(root, plan)
    else:
        refuse_foreign(root)
    remove_leftovers(root)
    replace_file(root / PLAN, plan.model_dump_json(indent=1).encode() + b"\n")


def _refuse_other(root: Path, plan: EncodingPlan) -> None:
    try:
        before = EncodingPlan.model_validate_json(read_file(root / PLAN)).identity()
    except (OSError, ValidationError) as failure:
        got = f"{type(failure).__name__} in {PLAN}"
        fix = "choose another folder, or delete this one"
        what = "the encoding in this folder cannot be continued"
        raise error(
            "SD-D346", what, where=str(root), got=got, expect=f"the {PLAN} of sddit-run encode", fix=fix
        ) from None
    if differing := list(differences(before, plan.identity())):
        key, then, now = differing[0]
        raise error(
            "SD-D346",
            "the folder holds an unfinished encoding of something else",
            where=str(root),
            got=f"{key} = {now}",
            expect=f"{key} = {then}, as it was begun",
            fix="choose another folder, or rerun the command with which it was begun",
        )


def differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, value before, value now) of what differs."""
    one, other = dict(leaves(before)), dict(leaves(now))
    for key in sorted({*one, *other}):
        if one.get(key) != other.get(key):
            yield key, str(one.get(key))[:120], str(other.get(key))[:120]


def is_finished(root: Path, plan: EncodingPlan) -> bool:
    """Return whether the folder holds the finished cache of a plan. Raises SD-D343 if it holds another."""
    if not (root / INDEX).exists():
        return False
    index = read_index(str(root)).index
    if differing := list(differences(_of_index(index), _of_plan(plan))):
        key, then, now = differing[0]
        what, fix = "there is a finished cache of latents", "choose another folder"
        expect = f"{key} = {then}, as in {INDEX}"
        raise error("SD-D343", what, where=str(root), got=f"{key} = {now}", expect=expect, fix=fix)
    return True


def _of_plan(plan: EncodingPlan) -> dict[str, Any]:
    identity = plan.identity()
    return {key: identity[key] for key in ("images", "codec", "class_names", "flip")}


def _of_index(index: Index) -> dict[str, Any]:
    if index.codec is None or index.images is None:
        return {"codec": None}
    flip: FlipOption = "both" if index.flip == "both" else "none"
    plan = EncodingPlan(
        images=index.images,
        class_names=index.class_names,
        codec=index.codec,
        shape=(index.channels, index.height, index.width),
        flip=flip,
        shard_images=1,
        device="",
    )
    return _of_plan(plan)


def remove_records(root: Path, plan: EncodingPlan) -> None:
    """Remove what only an unfinished encoding needs."""
    with storage_errors(root):
        for shard in range(plan.shards):
            record_path(root, shard).unlink(missing_ok=True)
        (root / PLAN).unlink(missing_ok=True)
