"""Test recipes of images that train on their latents, which the first run makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import sddit.encoding.encode
from sddit.data.latents import read_index
from sddit.errors import SdditError
from sddit.recipes.resolve import resolve

SMALL = ["dataset.size=32", "train.steps=2", "train.batch=16", "optimizer.warmup=0", "evaluate.samples=8"]
SMALL += ["evaluate.previews=0", "evaluate.features=[]", "sampler.steps=2", "backbone.width=32"]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sddit.encoding.encode, "default_processes", lambda device: 1)


def test_the_first_run_encodes_the_images_and_later_ones_use_the_latents(
    sddit_run: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = sddit_run("-n", "emoji-latent", *SMALL)
    assert plan.status == 0, plan.stderr
    assert "2,952 training images of 16x4x4, 8 classes" in plan.stdout
    assert "the first run encodes the images" in " ".join(plan.stdout.split())
    assert not (own_cache / "sddit" / "latents").exists()
    with pytest.raises(SdditError, match=r"SD-D347(.|\n)*not encoded yet(.|\n)*sddit-run .*emoji-latent"):
        resolve("emoji-latent", SMALL)

    first = sddit_run("emoji-latent", *SMALL, "--json")
    assert first.status == 0, first.stderr
    [cache] = (own_cache / "sddit" / "latents").iterdir()
    index = read_index(str(cache)).index
    assert (index.rows, index.flip, index.codec is not None) == (3272, "both", True)

    monkeypatch.setattr(sddit.encoding.encode, "encode", None)  # nothing is encoded again
    again = sddit_run("emoji-latent", *SMALL, "--json")
    assert json.loads(again.stdout)["already_finished"]
    folder = Path(json.loads(again.stdout)["folder"])
    recipe = resolve(folder / "recipe.resolved.json")
    assert recipe.dataset.component.qualified == "sddit/latents"
    assert (recipe.dataset.params.flip, recipe.dataset.params.normalize) == (False, "standard")
    assert recipe.facts.image == (16, 4, 4)
    assert recipe.run_id == resolve("emoji-latent", SMALL).run_id
    assert load_file(folder / "samples" / "latents.safetensors")["latents"].shape == (8, 16, 4, 4)
    assert "the first run encodes" not in sddit_run("-n", "emoji-latent", *SMALL).stdout


def test_other_images_or_another_codec_have_latents_of_their_own(own_cache: Path) -> None:
    found = set()
    for words in ((), ("dataset.flip=false",), ("dataset.flags=true",), ("codec.scale=2.0",), ("seed=3",)):
        with pytest.raises(SdditError) as refused:
            resolve("emoji-latent", [*SMALL, *words])
        found.add(refused.value.problems[0].got)
    assert len(found) == 4  # the seed changes nothing


def test_a_codec_that_is_not_to_encode_is_refused_for_images() -> None:
    with pytest.raises(SdditError, match=r"SD-R108(.|\n)*codec.encode=true"):
        resolve("emoji-latent", [*SMALL, "codec.encode=false"])


def test_images_that_the_codec_does_not_take_are_refused_by_the_plan(sddit_run: Any) -> None:
    done = sddit_run("-n", "fashion", "codec.name=tiny_kl", "codec.encode=true")
    assert done.status == 4
    assert "SD-D353" in done.stderr
