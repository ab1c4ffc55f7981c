"""Latents without a decoder: never scored as images, kept as latents, shown only with a label."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import sddit
from sddit.ablations.planning.arms import expand
from sddit.ablations.planning.plan import make_plan
from sddit.cli import app
from sddit.data.declared import DeclaredParams, declared_table
from sddit.data.latent_writing import write_cache
from sddit.data.preview import encoder_units
from sddit.data.undecoded import CAPTION, samples_are_undecoded
from sddit.errors import SdditError
from sddit.evaluation.sample_images import ABOUT
from sddit.evaluation.scores import extract_split
from sddit.interfaces import Component
from sddit.plugins.host import Host
from sddit.progress import Progress
from sddit.recipes.checks.evaluation_rules import check_evaluation
from sddit.recipes.merge import load
from sddit.recipes.recipe import facts_to_json
from sddit.recipes.resolve import resolve, resolve_without_data
from sddit.recipes.search import shipped
from sddit.reports.rendering import sentence
from sddit.runs.pipeline import RunResult, run
from sddit.storage.run_folder import refuse_changed
from sddit.testing.toys.plugin import TOY_RECIPE
from sddit_standard.datasets.latent_dataset import latents
from sddit_standard.datasets.params import DigitsParams, LatentsParams

SCALE = 0.18215
MEANS, STDS = (np.array(values)[:, None, None] for values in ([5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28]))
ELSEWHERE = ["dataset.name=declared", "dataset.image=[4, 32, 32]", "dataset.classes=1000", "dataset.label_drop=0.1"]
SMALL = "\n[evaluate]\nsamples = 6\npreviews = 1\nper_class = 2\n"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of latents like those of Stable Diffusion's VAE."""
    rng = np.random.default_rng(0)
    mean = MEANS + STDS * rng.standard_normal((60, 4, 8, 8))
    moments = np.concatenate([mean, rng.uniform(-6, 2, mean.shape)], axis=1).astype(np.float32)
    about: dict[str, Any] = {"layout": "mean+logvar", "scale": SCALE, "encoder": "sd-vae", "class_names": ("a", "b")}
    write_cache(tmp_path / "latents", [(moments, np.arange(60) % 2)], **about)
    return tmp_path / "latents"


@pytest.fixture
def recipe_file(tmp_path: Path, cache: Path, toys: Host) -> Path:
    """A recipe of toys on cached latents."""
    table = f'[dataset]\nname = "latents"\npath = "{cache}"\nholdout = 0.4'
    path = tmp_path / "lat.toml"
    path.write_text(TOY_RECIPE.replace('[dataset]\nname = "toy"', table) + SMALL)
    return path


@dataclass(frozen=True, slots=True)
class Said:
    """The outcome of a command line."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[[str], Said]:
    """`call("table RUN")` runs a command line."""

    def run_line(line: str) -> Said:
        capsys.readouterr()
        status = app.call(shlex.split(line))
        return Said(status, *capsys.readouterr())

    return run_line


def go(path: Path, out: Path, *overrides: str) -> RunResult:
    return run(resolve(path, overrides), out=out, device="cpu", progress=Progress())


def kept(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(file, "pt") as opened:
        return load_file(file), json.loads(opened.metadata()[ABOUT])


def age(run_folder: Path) -> None:
    """Make a run folder one of a version that scored latents and did not record that they are latents."""
    path = run_folder / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    for key in ("is_latent", "latent_scale", "encoder"):
        del recipe["data"][key]
    recipe["evaluate"]["features"] = ["toy"]
    path.write_text(json.dumps(recipe))
    path.with_name(f"{path.name}.sha256").unlink()
    refuse_changed(path)
    (run_folder / "result.json").unlink(missing_ok=True)  # the seal of the scores
    (run_folder / "scores.json").write_text(json.dumps({"toy": {"title": "t", "fd": 3.0, "fd_floor": 1.0, "n": 6}}))


def test_data_sets_state_whether_they_are_latents(cache: Path) -> None:
    facts = LatentsParams(path=str(cache)).facts()
    assert (facts.is_latent, facts.latent_scale, facts.encoder, facts.gives_images) == (True, SCALE, "sd-vae", False)
    assert replace(facts, decoder="a decoder").gives_images
    pixels = DigitsParams().facts()
    assert (pixels.is_latent, pixels.latent_scale, pixels.gives_images) == (False, None, True)


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 8, 8)])
def test_a_stand_in_states_it_too(cache: Path, shape: tuple[int, int, int]) -> None:
    facts = replace(LatentsParams(path=str(cache)).facts(), image=shape, mean=(0.1,) * shape[0], std=(1.0,) * shape[0])
    data, dataset = facts_to_json(facts), {"name": "sddit/latents", "posterior": "sample"}

    def declared(data: dict[str, Any]) -> DeclaredParams:
        table = declared_table(data, dataset)
        return DeclaredParams.model_validate_json(json.dumps({k: v for k, v in table.items() if k != "name"}))

    again = declared(data).facts()
    assert (again.is_latent, again.latent_scale, again.encoder) == (True, SCALE, "sd-vae")
    earlier = {key: value for key, value in data.items() if key not in ("is_latent", "latent_scale", "encoder")}
    old = declared(earlier).facts()
    assert (old.is_latent, old.latent_scale, old.encoder) == (True, None, "")
    assert old.fingerprint != again.fingerprint


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": (4, 8, 8), "latents": False}, "images have 1 or 3 channels, not 4"),
        ({"image": (3, 8, 8), "latent_scale": 0.2}, "set latents = true"),
        ({"image": (1, 8, 8), "encoder": "x"}, "set latents = true"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DeclaredParams(**given)
    DeclaredParams(**(given | {"latents": True}))


@pytest.mark.parametrize("normalize", ["range", "standard"])
def test_the_units_of_the_encoder_are_those_of_the_cache(cache: Path, normalize: Any) -> None:
    params = LatentsParams(path=str(cache), normalize=normalize)
    data = latents(params, split="train")
    x, _ = data.fetch([3, 7])
    with safe_open(cache / "shard-00000.safetensors", "pt") as file:
        stored = file.get_tensor("moments")[[3, 7], :4]
    torch.testing.assert_close(encoder_units(x, params, data.facts).float(), stored, rtol=1e-5, atol=1e-5)
    assert (x - stored).abs().max() > 1  # the control: what the network sees is something else


def test_a_run_keeps_latents_and_no_images_of_their_channels(recipe_file: Path, tmp_path: Path) -> None:
    first = go(recipe_file, tmp_path / "a")
    assert first.scores == {} and "samples/latents.safetensors" in first.no_scores
    assert sorted(path.name for path in (first.folder / "samples").iterdir())[0] == "latents.safetensors"
    assert not (first.folder / "samples/samples.npz").exists()
    tensors, about = kept(first.folder / "samples/latents.safetensors")
    assert tensors["latents"].shape == (6, 4, 8, 8) and tensors["latents"].dtype == torch.float16
    assert tensors["labels"].tolist() == [0, 1] * 3 and tensors["ids"].tolist() == list(range(6))
    assert (about["scale"], about["encoder"], about["class_names"]) == (SCALE, "sd-vae", ["a", "b"])
    drawn = sddit.sample(sddit.load(first.folder), per_class=3, latents=True)  # class by class
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn[[0, 3]].half(), tensors["latents"][:2], rtol=2e-3, atol=2e-3)
    page = (first.folder / "report.html").read_text()
    assert CAPTION.capitalize() in page and "There are no scores: the samples are latents" in page
    again = go(recipe_file, tmp_path / "b")
    one, two = ((ended.folder / "samples/latents.safetensors").read_bytes() for ended in (first, again))
    assert one == two


def test_images_are_kept_and_shown_as_before(toy_recipe: Path, tmp_path: Path) -> None:
    toy_recipe.write_text(TOY_RECIPE + SMALL)
    ended = go(toy_recipe, tmp_path / "runs")
    assert (ended.folder / "samples/samples.npz").is_file()
    assert not (ended.folder / "samples/latents.safetensors").exists()
    assert ended.no_scores == "evaluate.features in the recipe names no extractor"
    assert CAPTION.capitalize() not in (ended.folder / "report.html").read_text()
    model = sddit.load(ended.folder)
    assert sddit.sample(model, per_class=1).dtype == torch.uint8
    with pytest.raises(SdditError, match="SD-T913: the samples of this run are images"):
        sddit.sample(model, per_class=1, latents=True)


def test_previews_of_channels_are_announced_as_such(recipe_file: Path, tmp_path: Path) -> None:
    model = sddit.load(go(recipe_file, tmp_path / "runs").folder)
    with pytest.warns(UserWarning, match=f"{CAPTION}.*latents=True"):
        assert sddit.sample(model, per_class=1).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("data", ["cache", "declared", "three channels"])
def test_scores_are_refused_when_the_recipe_is_read(recipe_file: Path, data: str) -> None:
    stand_in = ["dataset.name=declared", "dataset.classes=2"]
    given = {
        "cache": [],
        "declared": [*stand_in, "dataset.image=[4, 8, 8]"],
        "three channels": [*stand_in, "dataset.image=[3, 8, 8]", "dataset.latents=true"],
    }[data]
    with pytest.raises(SdditError, match=r"SD-T912(.|\n)*evaluate.features=\[\]"):
        resolve(recipe_file, [*given, 'evaluate.features=["toy"]'])
    recipe = resolve(recipe_file, given)
    assert recipe.features == {}
    scored = replace(recipe, features={"toy": None}, facts=replace(recipe.facts, decoder="a decoder"))  # type: ignore[dict-item]
    assert "SD-T912" not in {problem.code for problem in check_evaluation(scored)}


def test_no_mode_of_evaluate_looks_at_latents(recipe_file: Path, tmp_path: Path, call: Callable[[str], Said]) -> None:
    folder = go(recipe_file, tmp_path / "runs").folder
    for options in (
        "",
        "--json",
        "--copies",
        "--probe --copies",
        f"--inception {recipe_file} --reference {recipe_file}",
    ):
        said = call(f"evaluate {folder} {options}")
        assert said.status == 2 and "SD-T912" in said.stderr, options
    assert not (folder / "copies.json").exists() and not (folder / "probe.json").exists()
    said = call(f"evaluate {folder} --probe")
    assert said.status == 0, said.stderr
    assert "linear probe" in said.stdout


def test_a_run_whose_cache_was_replaced_is_not_probed_on_the_new_one(
    recipe_file: Path, cache: Path, tmp_path: Path, call: Callable[[str], Said]
) -> None:
    folder = go(recipe_file, tmp_path / "runs").folder
    assert call(f"evaluate {folder} --probe").status == 0
    index = json.loads((cache / "latents.json").read_text())
    (cache / "latents.json").write_text(json.dumps({**index, "encoder": "another"}))
    said = call(f"evaluate {folder} --probe")
    assert said.status == 5 and "SD-C407" in said.stderr


def test_a_recipe_that_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.resolved.json")
    assert not samples_are_undecoded(tmp_path)


def test_a_run_of_an_earlier_version_loads_and_its_scores_are_gone(
    recipe_file: Path, tmp_path: Path, call: Callable[[str], Said]
) -> None:
    folder = go(recipe_file, tmp_path / "runs").folder
    age(folder)
    assert samples_are_undecoded(folder)
    assert resolve_without_data(folder / "recipe.resolved.json").features == {}
    assert "SD-T912" in call(f"evaluate {folder}").stderr
    assert call(f"evaluate {folder} --probe").status == 0
    said = call(f"table {folder}")
    assert "FD" not in said.stdout and f"no image scores of {folder.name}" in said.stderr
    assert call(f"export {folder} --out {tmp_path / 'out'}").status == 0
    assert "## Scores" not in (tmp_path / "out/README.md").read_text()


def test_a_command_writes_latents_next_to_its_preview(
    recipe_file: Path, tmp_path: Path, call: Callable[[str], Said]
) -> None:
    said = call(f"{recipe_file} --out {tmp_path / 'runs'}")
    assert "no scores: the samples are latents" in said.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    said = call(f"sample {folder} --classes b,a --per-class 2 --seeds 0-1")
    assert [Path(line).name for line in said.stdout.split()] == ["drawn-1.png", "drawn-1.safetensors"]
    tensors, _ = kept(folder / "samples/drawn-1.safetensors")
    assert tensors["labels"].tolist() == [1, 1, 0, 0] * 2
    assert tensors["seeds"].tolist() == [0] * 4 + [1] * 4
    expected = sddit.sample(sddit.load(folder), classes=[1, 0], per_class=2, seed=1, latents=True)
    torch.testing.assert_close(tensors["latents"][4:].float(), expected, rtol=2e-3, atol=2e-3)


def test_an_unknown_scale_is_not_guessed(
    recipe_file: Path, tmp_path: Path, cache: Path, call: Callable[[str], Said]
) -> None:
    folder = go(recipe_file, tmp_path / "runs").folder
    age(folder)
    cache.rename(tmp_path / "elsewhere")
    model = sddit.load(folder)
    with pytest.raises(SdditError, match=r"SD-T913(.|\n)*latent_scale"):
        sddit.sample(model, per_class=1, latents=True)
    assert sddit.sample(model, per_class=1, latents=True, overrides=[f"dataset.latent_scale={SCALE}"]).shape[1] == 4
    said = call(f"sample {folder} --per-class 1")
    assert said.status == 0 and "divide by the scale" in said.stderr
    tensors, about = kept(folder / "samples/drawn-1.safetensors")
    assert about["scale"] is None and "latents" not in tensors
    (cache.parent / "elsewhere").rename(cache)
    known = sddit.sample(sddit.load(folder), per_class=1, latents=True)
    torch.testing.assert_close(tensors["scaled_latents"].float(), known * SCALE, rtol=2e-3, atol=2e-3)


def test_the_features_of_latents_are_not_extracted_from_python_either(cache: Path) -> None:
    with pytest.raises(SdditError, match="SD-T912"):
        extract_split(latents(LatentsParams(path=str(cache)), split="train"), {}, 8)


def test_shipped_recipes_on_latents_score_and_rank_decoded_samples_only() -> None:
    folder = shipped()
    paths = [*(folder / "imagenet256").glob("*.toml"), *(folder / "ablations/imagenet256").glob("*.toml")]
    assert len(paths) > 30
    scored = []
    for path in [*paths, folder / "base/imagenet256.toml"]:
        tables = load(path).tables
        if tables["dataset"]["name"] == "folder":  # of pixels
            continue
        assert tables["codec"]["name"] == "diffusers", path
        if tables["evaluate"].get("features") or tables.get("ablation", {}).get("metrics"):
            scored.append(path.parent.parent.name)
            with pytest.raises(SdditError, match="SD-T912"):
                expand(load(path, [*ELSEWHERE, "codec=false"]))
    assert set(scored) == {"ablations"} and len(scored) == 8


def test_an_ablation_ranks_by_no_score_of_latents(recipe_file: Path, tmp_path: Path) -> None:
    text = "[ablation]\nseeds = [0]\n[ablation.grid]\ndataset.label_drop = [0.0, 0.1]\n"
    recipe_file.write_text(recipe_file.read_text() + text)
    with pytest.raises(SdditError, match=r"SD-T912(.|\n)*toy\.fd(.|\n)*ablation\.metrics"):
        expand(load(recipe_file, ['ablation.metrics=["toy.fd"]']))
    with pytest.raises(SdditError, match="SD-T912"):
        expand(load(recipe_file, ['evaluate.features=["toy"]']))
    plan = make_plan(expand(load(recipe_file)), tmp_path / "runs")
    assert plan.metrics == () and plan.record().undecoded
    assert "undecoded" in plan.record().to_json()
    said = sentence("nothing_compared", single=False, undecoded=True)
    assert "latents" in said and "samples/latents.safetensors" in said
    assert "latents" not in sentence("nothing_compared", single=False, undecoded=False)


def test_a_missing_cache_names_its_folder_the_key_and_the_command_that_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[str], Said]
) -> None:
    """The recipe that declares the facts of its cache needs no other words than -n; another one needs all of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Component, "missing", lambda component: ())  # the codec is not built
    monkeypatch.setenv("SDDIT_DATA", str(tmp_path / "data"))
    Path("mine.toml").write_text('extends = "imagenet256/dit-s8"\n')
    Path("undeclared.toml").write_text('extends = "imagenet256/dit-s8"\ncodec = false\ndataset.declared = false\n')
    for line in ("mine.toml train.batch=64", "imagenet256/dit-s8 train.batch=64", "undeclared.toml train.batch=64"):
        said = call(line)
        assert said.status == 4
        assert f"got:    {tmp_path}/data/imagenet256-latents: no such folder" in said.stderr
        assert "dataset.path=FOLDER" in said.stderr
        command = re.search(r"sddit-run (-n .*)", said.stderr)
        assert command and command[1].split()[2] == "train.batch=64"
        assert ("dataset.classes=1000" in command[1]) == line.startswith("undeclared")
        planned = call(shlex.join(shlex.split(command[1])))
        assert planned.status == 0, planned.stderr
        assert "4x32x32" in planned.stdout
    assert call("-n undeclared.toml").status == 4
