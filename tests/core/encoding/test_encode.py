"""Test that images are encoded into a cache that the data set reads, the same after any interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from safetensors.numpy import load_file, save_file

from sddit import interfaces as face
from sddit.data.latents import read_index, verify_shards
from sddit.encoding.encode import Encoding, encode, encoding_of
from sddit.encoding.shard_plan import PLAN, record_path
from sddit.errors import SdditError
from sddit.plugins.host import Host
from sddit.progress import Progress
from sddit.testing.toys.components import ToyCodec
from sddit.testing.toys.params import ToyCodecParams

InChild = Callable[..., str]


class PickyParams(ToyCodecParams):
    """A codec with weights in a file, which may decode only, or return NaN."""

    path: str = Field("", description="The file.", json_schema_extra={"path": True, "free": True})
    encodes: bool = Field(True, description="Whether it encodes.")
    broken: bool = Field(False, description="Return NaN.")

    def facts(self, data: face.DataFacts | None = None) -> face.CodecFacts:
        return face.CodecFacts(channels=3, factor=self.side, scale=self.scale or 1.0, encodes=self.encodes)

    def weight_files(self) -> tuple[Path, ...]:
        return (Path(self.path),) if self.path else ()


class Picky(ToyCodec):
    def __init__(self, params: PickyParams, **runtime: Any) -> None:
        super().__init__(params, **runtime)
        self.broken = params.broken

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = super().encode(images)
        return mean / (0.0 if self.broken else 1.0), std


@pytest.fixture(autouse=True)
def picky(toys: Host) -> None:
    toys.registries.codecs.bound_to("toy").add("picky", Picky, params=PickyParams, summary="For errors.")


def toy_encoding(*words: str, codec: str = "toy", **settings: Any) -> Encoding:
    given = {"shard_images": 10, **settings}
    return encoding_of(Path("toy"), ("dataset.channels=3", *words), codec=codec, **given)


def write(out: Path, *words: str, codec: str = "toy", **settings: Any) -> bool:
    return encode(toy_encoding(*words, codec=codec, **settings), out, device="cpu", processes=1, progress=Progress())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "encoding.lock"}


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(SdditError) as refused:
        act()
    return refused.value.problems[0].code


def test_the_cache_holds_every_image_in_the_order_of_the_splits(tmp_path: Path) -> None:
    assert write(tmp_path / "out", licence="CC0") is False
    cache = read_index(str(tmp_path / "out"))
    verify_shards(cache)
    index, chosen = cache.index, toy_encoding().dataset
    assert index.images is not None
    assert index.codec is not None
    assert (index.images.train, index.images.test, index.images.licence) == (24, 8, "CC0")
    assert [shard.count for shard in index.shards] == [10, 10, 10, 2]
    assert (index.codec.name, index.class_names) == ("toy/toy", ("class 0", "class 1", "class 2"))
    assert index.colours is not None
    stored = [load_file(cache.root / shard.file) for shard in index.shards]
    moments, labels = (np.concatenate([part[key] for part in stored]) for key in ("moments", "labels"))
    codec = ToyCodec(ToyCodecParams(), device=torch.device("cpu"))
    for split, start in (("train", 0), ("test", 24)):
        dataset: face.Dataset = chosen.build(split=split)
        x, classes = dataset.fetch(range(len(dataset)))
        expected = torch.cat(codec.encode(dataset.to_images(x)), dim=1).half().numpy()
        assert np.array_equal(moments[start : start + len(dataset)], expected)
        assert labels[start : start + len(dataset)].tolist() == classes.tolist()
    assert not np.array_equal(moments[:8], moments[24:])


def test_a_mirror_image_follows_its_image(tmp_path: Path) -> None:
    write(tmp_path / "once")
    write(tmp_path / "both", flip="both")
    once, both = (load_file(tmp_path / name / "shard-00000.safetensors") for name in ("once", "both"))
    assert np.array_equal(both["moments"][::2], once["moments"])
    assert np.array_equal(both["moments"][1::2], once["moments"][..., ::-1])
    assert not np.array_equal(both["moments"][1::2], once["moments"])
    assert both["labels"].tolist() == once["labels"].repeat(2).tolist()
    verify_shards(read_index(str(tmp_path / "both")))


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "full disk"])
def test_an_interrupted_encoding_continues_to_the_same_bytes(tmp_path: Path, in_child: InChild, kill: bool) -> None:
    write(tmp_path / "whole")
    expected, ends = contents(tmp_path / "whole"), []
    for turn in range(1, 200):
        out = tmp_path / str(turn)
        ends.append(in_child(lambda out=out: write(out), turn, kill=kill))
        if out.exists():
            write(out)
            assert contents(out) == expected
        if ends[-1] == "done":
            break
    assert len(ends) > 20
    assert set(ends) == {"killed" if kill else "refused", "done"}


def test_latents_in_another_order_of_memory_are_written_in_theirs(tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path / "usual")
    original = ToyCodec.encode

    def channels_last(codec: ToyCodec, images: torch.Tensor) -> Any:
        mean, std = (part.contiguous(memory_format=torch.channels_last) for part in original(codec, images))
        return mean, std

    monkeypatch.setattr(ToyCodec, "encode", channels_last)
    write(tmp_path / "other")
    assert contents(tmp_path / "other") == contents(tmp_path / "usual")


def test_only_shards_that_are_left_are_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, encoded = tmp_path / "out", []
    original = ToyCodec.encode

    def encode_once(codec: ToyCodec, images: torch.Tensor) -> Any:
        encoded.append(len(images))
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return original(codec, images)

    monkeypatch.setattr(ToyCodec, "encode", encode_once)
    with pytest.raises(KeyboardInterrupt):
        write(out)
    assert record_path(out, 1).is_file()
    assert not (out / "latents.json").exists()
    encoded[:] = [0] * 3
    write(out)
    assert encoded[3:] == [4, 6, 2]  # of the third shard, 4 are of the training split
    assert write(out) is True
    assert encoded[3:] == [4, 6, 2]
    assert not (out / PLAN).exists()


def interrupted(out: Path) -> Path:
    """Return an encoding with its first two shards."""
    write(out)
    index = read_index(str(out)).index
    (out / "latents.json").unlink()
    write_again = toy_encoding().plan("cpu")
    (out / PLAN).write_text(write_again.model_dump_json())
    for shard in index.shards[2:]:
        (out / shard.file).unlink()
    return out


def test_another_encoding_in_the_folder_is_refused_and_kept(tmp_path: Path) -> None:
    out = interrupted(tmp_path / "out")
    before = contents(out)
    for words in (("dataset.images=30",), ("dataset.classes=2",), ("codec.side=4",)):
        assert code_of(lambda words=words: write(out, *words)) == "SD-D346"
    assert code_of(lambda: write(out, flip="both")) == "SD-D346"
    assert code_of(lambda: write(out, shard_images=5)) == "SD-D346"
    assert contents(out) == before
    write(out, "codec.scale=1.1", licence="CC0")
    assert read_index(str(out)).index.scale == 1.1


def test_a_finished_cache_and_a_folder_of_other_files_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "out")
    before = contents(tmp_path / "out")
    assert code_of(lambda: write(tmp_path / "out", "dataset.images=30")) == "SD-D343"
    assert contents(tmp_path / "out") == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert code_of(lambda: write(other)) == "SD-D346"
    assert contents(other) == {"thesis.txt": b"mine"}


def test_a_shard_that_was_rewritten_is_refused_until_it_is_deleted(tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path / "whole")
    out, original, calls = tmp_path / "out", ToyCodec.encode, []

    def stop_at_third(codec: ToyCodec, images: torch.Tensor) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(codec, images)

    monkeypatch.setattr(ToyCodec, "encode", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        write(out)
    shard = out / "shard-00000.safetensors"
    tensors = load_file(shard)
    tensors["moments"][0] = 0
    save_file(tensors, shard)
    assert code_of(lambda: write(out)) == "SD-D342"
    shard.unlink()
    write(out)
    assert contents(out) == contents(tmp_path / "whole")


def test_images_that_change_while_they_are_encoded_leave_no_index(tmp_path: Path, monkeypatch: Any) -> None:
    out, stated = tmp_path / "out", toy_encoding().dataset.params.facts()
    original = ToyCodec.encode

    def encode_and_change(codec: ToyCodec, images: torch.Tensor) -> Any:
        changed = face.DataFacts(**{name: getattr(stated, name) for name in stated.__slots__} | {"fingerprint": "new"})
        monkeypatch.setattr("sddit.testing.toys.params.ToyDatasetParams.facts", lambda params: changed)
        return original(codec, images)

    monkeypatch.setattr(ToyCodec, "encode", encode_and_change)
    assert code_of(lambda: write(out)) == "SD-D354"
    assert not (out / "latents.json").exists()
    assert (out / "shard-00000.safetensors").exists()


def test_latents_of_an_implausible_scale_are_refused_after_the_first_shard(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SdditError, match=r"SD-D344(.|\n)*rerun, which keeps the shards, with codec.scale="):
        write(out, "codec.scale=100.0")
    assert record_path(out, 0).exists()
    assert not record_path(out, 1).exists()
    write(out, "codec.scale=1.1")
    write(tmp_path / "other", "codec.scale=100.0", allow_implausible=True)
    assert read_index(str(tmp_path / "other")).index.allow_implausible


REFUSED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "a codec that only decodes": (("codec.encodes=false",), "picky", "SD-D353"),
    "a size that does not fit": (("codec.side=3",), "toy", "SD-D353"),
    "NaN": (("codec.broken=true",), "picky", "SD-D308"),
    "weights with another hash": (("codec.path=weights", f"codec.sha256={'0' * 64}"), "picky", "SD-D352"),
    "an unknown codec": ((), "tox", "SD-R110"),
    "an unknown key": (("codec.sides=3",), "toy", "SD-R102"),
    "a key of another table": (("train.steps=3",), "toy", "SD-T943"),
}


@pytest.mark.parametrize(("words", "codec", "code"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_encoded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], codec: str, code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(b"w")
    assert code_of(lambda: write(tmp_path / "out", *words, codec=codec)) == code
    assert not (tmp_path / "out" / "latents.json").exists()


def test_a_source_and_a_codec_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(SdditError, match=r"SD-T943(.|\n)*no codec is named(.|\n)*picky"):
        encoding_of(Path("toy"), (), codec=None)
    with pytest.raises(SdditError, match=r"SD-T943(.|\n)*does not exist(.|\n)*did you mean 'toy'"):
        encoding_of(Path("toyy"), (), codec="toy")


def test_the_command_writes_a_cache_and_says_what_it_holds(sddit_run: Any, tmp_path: Path) -> None:
    words = ("encode", "toy", "out", "--codec", "toy", "dataset.channels=3", "--nproc", "1")
    first, second, missing = sddit_run(*words), sddit_run(*words), sddit_run("encode", "toy", "out")
    assert (first.status, second.status, missing.status) == (0, 0, 2)
    assert "out: 32 latents of 3x4x4, scale 1" in first.stdout
    assert "already encoded" in second.stdout
    assert "already encoded" not in first.stdout
    assert "--codec" in missing.stderr
