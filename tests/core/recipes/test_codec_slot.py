"""Test the optional slot [codec]: what it decodes, what is refused, and which keys are part of the run id."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from sddit import interfaces as face
from sddit.errors import Problem
from sddit.interfaces import DataFacts
from sddit.plugins.host import Host, using_host
from sddit.recipes.differences import differences
from sddit.recipes.merge import of_tables
from sddit.recipes.recipe import Recipe
from sddit.recipes.remedies import with_data_command
from sddit.recipes.resolve import resolve
from sddit.testing.toys.params import ToyCodecParams

LATENTS = """\
name = "sddit/declared"
image = [3, 4, 4]
classes = 3
latents = true
"""
CODEC = """
[codec]
name = "toy"
"""

Resolve = Callable[..., Recipe]
Problems = Callable[..., list[Any]]


class FileCodecParams(ToyCodecParams):
    """A codec with one file of weights."""

    path: str = Field(description="The file.", json_schema_extra={"path": True, "free": True})

    def weight_files(self) -> tuple[Path, ...]:
        return (Path(self.path),)


class CachedParams(face.DatasetParams):
    """Latents of a cache that names the weights of its codec."""

    codec: str = Field(description="Hash of the weights.")

    def facts(self) -> DataFacts:
        return DataFacts(
            image=(3, 4, 4),
            class_names=("a", "b"),
            train_size=20,
            test_size=5,
            fingerprint="cached",
            mean=(0.0,) * 3,
            std=(0.5,) * 3,
            source="made here",
            is_latent=True,
            codec="toy/file",
            codec_sha256=self.codec,
        )


@pytest.fixture(scope="module", autouse=True)
def with_files(host: Host) -> None:
    host.registries.codecs.bound_to("toy").add("file", "nowhere:Built", params=FileCodecParams, summary="Of a file.")
    host.registries.datasets.bound_to("toy").add("cached", "nowhere:Built", params=CachedParams, summary="Of a codec.")


@pytest.fixture
def latents(base: str) -> str:
    return base.replace('name = "toy"\n\n[sampler]', f"{LATENTS}\n[sampler]")


def test_without_a_codec_nothing_about_one_is_in_the_recipe(resolved: Resolve, base: str, latents: str) -> None:
    assert resolved(base).codec is None
    assert "codec" not in resolved(base).to_json()
    assert "codec" not in resolved(latents).to_json(free=False)


def test_a_codec_is_part_of_the_run_id_and_survives_the_resolved_form(resolved: Resolve, latents: str) -> None:
    plain, recipe = resolved(latents), resolved(latents + CODEC)
    assert recipe.codec is not None
    assert recipe.to_json()["codec"] == {
        "name": "toy/toy",
        "scale": None,
        "shift": None,
        "encode": False,
        "sha256": "",
        "side": 2,
    }
    assert recipe.to_json(free=False)["codec"] == {"name": "toy/toy", "sha256": "", "side": 2}
    assert recipe.run_id != plain.run_id
    assert resolved(latents + CODEC, "codec.side=4").run_id != recipe.run_id
    assert resolved(latents + CODEC, "codec=false").run_id == plain.run_id


def test_a_codec_needs_latents_of_its_shape(problems: Problems, base: str, latents: str) -> None:
    (images,) = problems(base + CODEC)
    assert (images.code, "latents" in images.what) == ("SD-R108", True)
    (misfit,) = problems(latents.replace("image = [3, 4, 4]", "image = [4, 4, 4]") + CODEC)
    assert (misfit.code, misfit.got) == ("SD-D350", "3 channels, and 4 of declared, no images: 4x4x4")
    assert "codec.name" in misfit.where


def test_scale_and_shift_of_a_codec_have_no_effect_in_a_recipe(resolved: Resolve, latents: str) -> None:
    assert resolved(latents + CODEC, "codec.scale=2.0").idle == ("codec.scale",)
    assert resolved(latents + CODEC, "codec.side=4").idle == ()


def test_an_unknown_codec_and_an_unknown_key_are_reported(problems: Problems, latents: str) -> None:
    assert [p.code for p in problems(latents + CODEC, "codec.name=tay")] == ["SD-R110"]
    assert [p.code for p in problems(latents + CODEC, "codec.sides=2")] == ["SD-R102"]
    assert [p.code for p in problems(latents, "codec.side=2")] == ["SD-R109"]
    assert [p.code for p in problems(latents, "codec=2")] == ["SD-R103"]


def with_file(text: str, path: str = "a.bin", dataset: str = "") -> str:
    text = text.replace(LATENTS, f'name = "cached"\ncodec = "{dataset}"\n') if dataset else text
    return f'{text}\n[codec]\nname = "file"\npath = "{path}"\n'


def test_the_hash_of_the_weights_is_filled_in_and_the_path_is_free(resolved: Resolve, host: Host, latents: str) -> None:
    for name in ("a.bin", "b.bin"):
        Path(name).write_bytes(b"weights")
    Path("c.bin").write_bytes(b"others")
    one, moved, other = (resolved(with_file(latents, name)) for name in ("a.bin", "b.bin", "c.bin"))
    assert one.codec is not None
    assert one.codec.params.sha256 == sha256(b"weights").hexdigest()
    assert one.run_id == moved.run_id != other.run_id
    with using_host(host):
        changes = differences(one.to_json(), other.to_json())
    assert {key: kind for key, *_, kind in changes} == {"codec.path": "free", "codec.sha256": "numeric"}


def test_weights_that_are_not_the_stated_ones_are_refused(problems: Problems, resolved: Resolve, latents: str) -> None:
    Path("a.bin").write_bytes(b"weights")
    stated = sha256(b"weights").hexdigest()
    assert resolved(with_file(latents), f"codec.sha256={stated}").codec is not None  # the control
    (wrong,) = problems(with_file(latents), f"codec.sha256={'0' * 64}")
    assert (wrong.code, wrong.got, wrong.expect) == ("SD-D352", stated, "0" * 64)


def test_weights_that_did_not_make_the_cache_are_refused(problems: Problems, resolved: Resolve, latents: str) -> None:
    Path("a.bin").write_bytes(b"weights")
    stated = sha256(b"weights").hexdigest()
    assert resolved(with_file(latents, dataset=stated)).codec is not None  # the control
    (wrong,) = problems(with_file(latents, dataset="1" * 64))
    assert wrong.code == "SD-D350"
    assert stated in wrong.got
    assert "1" * 64 in wrong.expect


def test_several_files_have_the_hash_that_sha256sum_gives(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b.bin", "a.bin")]
    for path in paths:
        path.write_bytes(path.name.encode())
    lines = "".join(f"{sha256(name.encode()).hexdigest()}  {name}\n" for name in ("a.bin", "b.bin"))
    assert face.files_sha256(paths) == sha256(lines.encode()).hexdigest()
    assert face.files_sha256(paths[:1]) == sha256(b"b.bin").hexdigest()


def test_a_resolved_recipe_keeps_its_codec(resolved: Resolve, host: Host, latents: str) -> None:
    recipe = resolved(latents + CODEC)
    Path("recipe.resolved.json").write_text(json.dumps(recipe.to_json()))
    assert resolve("recipe.resolved.json", host=host).run_id == recipe.run_id


def test_the_command_that_gives_a_run_the_new_place_of_weights_is_named() -> None:
    missing = Problem("SD-D351", "the weights of the codec are not there", "codec.path", "nowhere")
    run, mine = (of_tables({"dataset": {}}, Path(name)) for name in ("runs/x/recipe.resolved.json", "runs/x/mine.json"))
    command = "sddit-run runs/x/recipe.resolved.json --resume runs/x codec.path=NEW_PATH"
    assert with_data_command(missing, run).fix.endswith(command)
    assert with_data_command(missing, mine) == missing, "not the recipe of a run"
    assert with_data_command(replace(missing, where="a/config.json"), run).fix == "", "damaged, not moved"
