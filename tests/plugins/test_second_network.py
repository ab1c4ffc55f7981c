"""Test guidance by a second network: another run, an export, or another EMA of the same run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import sddit
from sddit.api import plan_sampling
from sddit.cli.app import cli
from sddit.errors import SdditError
from sddit.exchange.exporting import export_run
from sddit.generation import guidance_overrides
from sddit.progress import Progress
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run
from sddit.storage.manifest import read_manifest

SMALL = [
    "train.batch=8",
    "train.steps=4",
    "train.threads=1",
    "optimizer.warmup=0",
    "sampler.steps=3",
    "backbone.heads=2",
]
SMALL += ["evaluate.samples=4", "evaluate.features=[]", "evaluate.previews=0", "train.save_every=2", "train.keep=2"]
MAIN = ["backbone.width=32", "backbone.depth=3", "ema.wide.decay=0.5", *SMALL]
WEAK = ["backbone.width=16", "backbone.depth=1", "seed=5", *SMALL]

Draw = Callable[..., Tensor]


def train(out: Path, overrides: list[str], recipe: str = "digits/dit") -> Path:
    return run(resolve(recipe, overrides), out=out, device="cpu", progress=Progress()).folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Return the folders of a run, of a smaller one, and of runs that do not fit."""
    out = tmp_path_factory.mktemp("runs")
    yield {
        "main": train(out, MAIN),
        "weak": train(out, WEAK),
        "flow": train(out, [*WEAK, "noise_schedule.name=flow"]),
        "standard": train(out, [*WEAK, "dataset.normalize=standard"]),
        "emoji": train(out, [*WEAK, "dataset.size=32", "train.precision=fp32"], "emoji/dit"),
    }


def planned(folder: Path, *overrides: str) -> sddit.generation.Sampling:
    model = sddit.load(folder)
    return plan_sampling(
        model,
        classes=[3],
        per_class=2,
        seed=None,
        steps=None,
        sampler=None,
        guidance=None,
        device="cpu",
        overrides=overrides,
    )


def by(weak: Path | None, *more: str) -> list[str]:
    named = [] if weak is None else [f"guidance.weak={weak}"]
    return ["guidance.name=autoguidance", *named, *more]


def refused(folder: Path, *overrides: str) -> SdditError:
    with pytest.raises(SdditError) as caught:
        planned(folder, *overrides)
    return caught.value


def test_samples_follow_the_extrapolation_from_the_weaker_network(folders: dict[str, Path]) -> None:
    """At one noise level: an independent computation from two loaded models."""
    main, weak = sddit.load(folders["main"]), sddit.load(folders["weak"])
    sampling = planned(
        folders["main"], *by(folders["weak"], "guidance.scale=1.7", "sampler.name=euler", "sampler.steps=2")
    )
    x = sddit.generation.KeyedDraws(sampling.request.seed, 0, torch.tensor(sampling.request.ids)).normal(
        "sample", (1, 8, 8)
    )
    sigmas = [80.0, 0.002, 0.0]
    x, labels = 80 * x.double(), torch.tensor(sampling.request.labels)
    for sigma, sigma_next in pairwise(sigmas):
        own, low = (model.denoise(x, sigma, labels) for model in (main, weak))
        x = x + (sigma_next - sigma) * (x - (low + 1.7 * (own - low))) / sigma
    torch.testing.assert_close(sampling.x(), x, rtol=1e-9, atol=1e-9)
    plain = planned(folders["main"], "sampler.name=euler", "sampler.steps=2")
    assert not torch.allclose(plain.x(), x, atol=1e-4)


def test_the_network_itself_and_scale_1_change_no_bit(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["main"], tmp_path / "copy")
    plain = planned(folders["main"]).x()
    for scale in (0.5, 2.0, 4.0):
        assert torch.equal(planned(folders["main"], *by(copy, f"guidance.scale={scale}")).x(), plain)
    assert torch.equal(planned(folders["main"], *by(folders["weak"], "guidance.scale=1.0")).x(), plain)
    assert not torch.equal(planned(folders["main"], *by(folders["weak"])).x(), plain)


def test_the_hash_of_the_second_weights_is_part_of_what_identifies_samples(folders: dict[str, Path]) -> None:
    first = planned(folders["main"], *by(folders["weak"]))
    earlier = planned(folders["main"], *by(folders["weak"], "guidance.weak_step=2"))
    student = planned(folders["main"], *by(folders["weak"], "guidance.weak_weights=student"))
    plain = planned(folders["main"])
    identities = [one.identity() for one in (first, earlier, student)]
    assert "second_weights_sha256" not in plain.identity()
    assert len({one["second_weights_sha256"] for one in identities}) == 3
    assert len({one["recipe"] for one in [*identities, plain.identity()]}) == 4
    assert {one["weights_sha256"] for one in identities} == {plain.identity()["weights_sha256"]}
    settings = first.recipe.guidance.params.model_dump()
    file = read_manifest(folders["weak"] / "checkpoints" / "step-000004").files["ema.safetensors"]
    assert (settings["weak_weights"], settings["weak_step"], settings["weak_sha256"]) == ("main", 4, file[1])


def test_the_path_of_the_second_network_is_not_part_of_the_id(folders: dict[str, Path], tmp_path: Path) -> None:
    moved = shutil.copytree(folders["weak"], tmp_path / "moved")
    here, there = (planned(folders["main"], *by(path)) for path in (folders["weak"], moved))
    assert here.identity() == there.identity()
    assert torch.equal(here.x(), there.x())


def test_another_ema_and_an_earlier_checkpoint_of_the_same_run(folders: dict[str, Path]) -> None:
    main = folders["main"]
    plain = planned(main).x()
    drawn = [
        planned(main, *by(None, "guidance.weak_weights=wide")).x(),
        planned(main, *by(main, "guidance.weak_step=2")).x(),
    ]
    assert not any(torch.equal(one, plain) for one in drawn) and not torch.equal(*drawn)
    for weak, says in (
        ([], "compares the network with itself"),
        (["guidance.weak_weights=narrow"], "no weights 'narrow'"),
    ):
        assert says in str(refused(main, *by(None, *weak)))
    assert "name its folder in weak" in str(refused(main, *by(None, "guidance.weak_step=2")))


def test_an_export_is_a_second_network(folders: dict[str, Path], tmp_path: Path) -> None:
    export = export_run(folders["weak"], out=tmp_path / "export").folder
    by_export, by_run = (planned(folders["main"], *by(weak)).x() for weak in (export, folders["weak"]))
    assert torch.equal(by_export, by_run)


@pytest.mark.parametrize(
    ("weak", "says"),
    [
        ("flow", "another noise_schedule.name"),
        ("standard", "another dataset.normalize"),
        ("emoji", "another data.image"),
    ],
)
def test_other_noise_or_data_are_refused(folders: dict[str, Path], weak: str, says: str) -> None:
    found = refused(folders["main"], *by(folders[weak]))
    assert {problem.code for problem in found.problems} == {"SD-R115"}
    assert says in str(found)


def test_a_folder_without_a_network_or_with_another_one_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    main = folders["main"]
    assert [p.code for p in refused(main, *by(tmp_path)).problems] == ["SD-C445"]
    assert [p.code for p in refused(main, *by(folders["weak"], "guidance.weak_step=3")).problems] == ["SD-C403"]
    other = by(folders["weak"], f"guidance.weak_sha256={'0' * 64}")
    assert [p.code for p in refused(main, *other).problems] == ["SD-C451"]


def test_a_run_guided_by_another_samples_at_its_end_and_refuses_changed_weights(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    weak = shutil.copytree(folders["weak"], tmp_path / "weak")
    guided = train(tmp_path / "runs", [*MAIN, *by(weak)])
    assert torch.equal(sddit.sample(sddit.load(guided), per_class=1), sddit.sample(sddit.load(guided), per_class=1))
    for step in (4,):  # the checkpoint that the recipe names
        shutil.rmtree(weak / "checkpoints" / f"step-{step:06}")
    with pytest.raises(SdditError) as caught:
        sddit.sample(sddit.load(guided), per_class=1)
    assert [problem.code for problem in caught.value.problems] == ["SD-C403"]


def test_both_passes_are_counted(folders: dict[str, Path]) -> None:
    def cost(*overrides: str) -> float:
        per_image = plan(resolve("digits/dit", [*MAIN, *overrides])).sampling_flops_per_image
        assert per_image is not None
        return per_image

    weak = plan(resolve("digits/dit", WEAK)).sampling_flops_per_image
    assert weak is not None and weak < 0.2 * cost()
    assert cost(*by(folders["weak"])) == cost() + weak
    assert cost(*by(None, "guidance.weak_weights=wide")) == 2 * cost()
    assert cost(*by(folders["weak"], "guidance.scale=1.0")) == cost()


def test_a_bare_scale_still_means_classifier_free_guidance() -> None:
    recipe: Recipe = resolve("digits/dit")
    assert guidance_overrides(recipe, 1.5) == ["guidance.name=heun/cfg", "guidance.scale=1.5"]
    assert guidance_overrides(resolve("digits/internal-guidance"), 2.0) == ["guidance.scale=2.0"]


def test_the_command_line_samples_with_internal_guidance(tmp_path: Path) -> None:
    folder = train(tmp_path, [*MAIN, "backbone.aux_heads.inner=1"], "digits/internal-guidance")
    done = CliRunner().invoke(cli, ["sample", str(folder), "--per-class", "1", "--guidance", "1.8"])
    assert done.exit_code == 0, done.output
