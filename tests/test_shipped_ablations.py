"""The ablations in recipes/: each plans without a problem, and its arms are what they are called."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from stand_ins import RECIPES, stand_ins

from sddit.ablations.planning.arms import Arm, expand
from sddit.ablations.planning.measurements import check_for_leaks
from sddit.ablations.planning.plan import AblationPlan, make_plan
from sddit.ablations.runner import run_ablation
from sddit.errors import SdditError
from sddit.progress import Progress
from sddit.recipes.merge import load
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.reports.ablation.ablation_report import write_report
from sddit.training.build import build_session

SANITY = RECIPES / "ablations" / "sanity.toml"
SMALL = sorted(path for path in (RECIPES / "ablations").glob("*.toml") if path != SANITY)
LARGE = sorted((RECIPES / "ablations" / "imagenet256").glob("*.toml"))
UNPUBLISHED = sorted((RECIPES / "ablations" / "unpublished").glob("*.toml"))
ALL = [str(path.relative_to(RECIPES).with_suffix("")) for path in (*SMALL, *LARGE, *UNPUBLISHED)]
MAIN, LARGE_MAIN = "ablations/sd_dit_vs_masking", "ablations/imagenet256/sd_dit_vs_masking"
GROUNDS = {
    "dit": "digits/dit",
    "c0": "digits/sd-dit-c0",
    "c1": "digits/sd-dit-c1",
    "c2": "digits/sd-dit-c2",
    "sd_dit": "quickstart",
    "maskdit": "digits/maskdit",
    "mdt": "digits/mdtv2-edm",
}
"""The shipped recipe of each arm of the main comparison."""
CONTROLS = ("c0", "c1", "c2", "sd_dit")


@cache
def planned(name: str) -> AblationPlan:
    path = RECIPES / f"{name}.toml"
    unscored = ["evaluate.features=[]", "ablation.metrics=[]"] if "imagenet256" in name else []
    return make_plan(expand(load(path, [*stand_ins(path), *unscored])), Path("runs"))


def arms(name: str) -> dict[str, Arm]:
    return {arm.label: arm for arm in planned(name).arms}


def recipes(name: str) -> dict[str, Recipe]:
    return {label: arm.recipe for label, arm in arms(name).items()}


def rate(label: str) -> float:
    """The learning rate at which an arm of the main comparison begins."""
    return float(recipes(MAIN)[label].optimizer.params.lr.start)


def what_it_has(recipe: Recipe) -> tuple[bool, bool, bool]:
    """(a mask on the student, the discrimination term, a teacher that is run)."""
    read = recipe.wants()
    views = [view for view in recipe.pair_sampler.params.views() if view.name in read]
    masked = any(view.is_masked for view in views if view.network == "student")
    return masked, "discrimination" in recipe.active_losses, any(view.network == "teacher" for view in views)


@pytest.mark.parametrize("name", ALL)
def test_an_ablation_plans_and_says_what_it_asks(name: str) -> None:
    plan = planned(name)
    assert plan.settings.question.endswith("?")
    assert plan.settings.tuning.endswith(".")
    assert plan.settings.baseline
    assert len(plan.arms) >= 4
    for arm in plan.arms:
        assert arm.recipe.warnings == ()
        assert arm.cost.not_stated == ()
        idle = {key.partition(".")[0] for key in arm.recipe.idle}
        assert idle <= (
            {"loss", "teacher"} if arm.label == "weight=0.0" else set()
        )  # the keys of the term it leaves out


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_a_small_one_is_scored_by_two_kinds_of_extractor(path: Path) -> None:
    assert {"classifier.fd", "mobilenet.fd", "classifier.class_accuracy"} <= set(
        planned(f"ablations/{path.stem}").metrics
    )


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_a_large_ablation_has_the_arms_of_a_small_one(path: Path) -> None:
    small, large = planned(f"ablations/{path.stem}"), planned(f"ablations/imagenet256/{path.stem}")
    assert small.settings.question == large.settings.question
    assert len(large.settings.seeds) == len(small.settings.seeds)


def test_every_small_ablation_has_a_large_one() -> None:
    """But for the one at equal FLOPs, which is a key on the command line there."""
    assert {path.stem for path in SMALL} - {path.stem for path in LARGE} == {"sd_dit_vs_masking_flops"}


@pytest.mark.parametrize("name", ALL)
def test_arms_differ_and_are_compared_at_five_seeds(name: str) -> None:
    plan = planned(name)
    assert len({run.id for run in plan.runs}) == len(plan.arms) * len(plan.settings.seeds)
    compared = set(planned(MAIN).settings.seeds)
    assert len(plan.settings.seeds) == 5 if "learning_rate" not in name else compared.isdisjoint(plan.settings.seeds)


@pytest.mark.parametrize("name", ALL)
def test_arms_of_one_seed_are_pairs(name: str) -> None:
    """Equal seeds, data and batches: hence equal batches, noise and noise levels."""
    shared = [(arm.recipe.seed, arm.recipe.dataset, arm.recipe.train.batch) for arm in planned(name).arms]
    assert all(one == shared[0] for one in shared)


def test_the_equal_arm_shares_its_runs_and_no_other_arm_does() -> None:
    ids = {
        arm: {run.id for run in planned("ablations/sanity").runs if run.arm == arm} for arm in arms("ablations/sanity")
    }
    assert ids.pop("twin") == ids["sd_dit"]
    assert len(set.union(*ids.values())) == 5 * len(ids)


def test_each_broken_arm_is_warned_of_and_no_sound_one_is() -> None:
    found = arms("ablations/sanity")
    checks = check_for_leaks(list(found.values()), Progress())
    assert {label for label, check in checks.items() if check.found} == {"leaking"}
    assert not any(check.unchecked for check in checks.values())
    assert "to mend of loss 'leaking'" in checks["leaking"].found[0]
    assert {label for label, arm in found.items() if arm.recipe.warnings} == {"blind"}
    assert "student and teacher see the same image" in found["blind"].recipe.warnings[0]


@pytest.mark.parametrize("label", GROUNDS)
def test_an_arm_is_the_shipped_recipe_at_the_common_length(label: str) -> None:
    """And at the learning rate that was found for it."""
    common = ["train.steps=800", "evaluate.previews=1", "evaluate.during=3", f"optimizer.lr.start={rate(label)}"]
    assert recipes(MAIN)[label].run_id == resolve(RECIPES / f"{GROUNDS[label]}.toml", common).run_id
    assert recipes(MAIN)[label].run_id != resolve(RECIPES / f"{GROUNDS[label]}.toml", common[:1]).run_id


@pytest.mark.parametrize("name", [MAIN, LARGE_MAIN])
def test_the_controls_take_the_mask_and_the_discrimination_away(name: str) -> None:
    found = {label: what_it_has(recipe) for label, recipe in recipes(name).items() if label in CONTROLS}
    assert found == {
        "c0": (False, False, False),
        "c1": (True, False, False),
        "c2": (False, True, True),
        "sd_dit": (True, True, True),
    }


@pytest.mark.parametrize("name", [MAIN, LARGE_MAIN])
def test_the_controls_have_the_network_of_sd_dit(name: str) -> None:
    found = arms(name)
    networks = [found[label].recipe.backbone for label in CONTROLS]
    assert all(network == networks[0] for network in networks)
    assert found["dit"].recipe.backbone != networks[0]
    sampled = {label: arm.cost.backbone_parameters for label, arm in found.items()}
    assert len({sampled[label] for label in CONTROLS}) == 1
    assert found["sd_dit"].parameters > found["c1"].parameters == sampled["c1"]  # the heads, which are not sampled with


@pytest.mark.parametrize("name", [MAIN, LARGE_MAIN])
def test_all_arms_have_one_objective_optimizer_and_sampler(name: str) -> None:
    found = list(recipes(name).values())
    for part in ("noise_schedule", "sampler", "guidance", "ema", "train", "evaluate"):
        assert all(getattr(recipe, part) == getattr(found[0], part) for recipe in found), part
    optimizers = [{**recipe.optimizer.to_json(), "lr": None} for recipe in found]  # each has its own learning rate
    assert all(one == optimizers[0] for one in optimizers)
    assert len({recipe.losses["denoise"].component.qualified for recipe in found}) == 1


def test_the_controls_begin_with_the_weights_of_sd_dit() -> None:
    first, *others = (
        dict(build_session(recipes(MAIN)[label], torch.device("cpu")).student.backbone.named_parameters())
        for label in CONTROLS
    )
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_equal_images_and_equal_flops_are_what_they_say() -> None:
    images, flops = arms(MAIN), arms(f"{MAIN}_flops")
    assert {arm.cost.steps for arm in images.values()} == {800}
    amount = flops["dit"].cost.training_flops
    assert flops["dit"].recipe.run_id == images["dit"].recipe.run_id  # its runs are shared
    assert all(arm.cost.training_flops == pytest.approx(amount, rel=2e-3) for arm in flops.values())
    assert flops["sd_dit"].cost.steps < 800 < flops["maskdit"].cost.steps


def test_small_ones_share_the_runs_of_the_quickstart() -> None:
    names = ["mask_ratio", "discrimination_weight", "prototypes", "teacher_noise", "teacher_momentum", "time_sampling"]
    runs = [{run.id for run in planned(f"ablations/{name}").runs if run.seed == 0} for name in names]
    assert len(set.intersection(*runs)) == 1


def test_hiding_starts_at_the_stated_block_of_every_method() -> None:
    """TREAD from the first block has the network and the mask of a split decoder: SD-DiT's control arm C1."""
    found = recipes("ablations/unpublished/hiding_start")
    starts = {label: recipe.backbone.params.span_start for label, recipe in found.items()}
    assert starts == {f"{arm} from={start}": start for arm in ("tread", "sprint", "sd_dit") for start in range(4)}
    fills = {label.partition(" ")[0]: recipe.backbone.params.span_fill for label, recipe in found.items()}
    assert fills == {"tread": "input", "sprint": "fused", "sd_dit": "input"}
    assert {recipe.backbone.params.encoder_depth for label, recipe in found.items() if "sprint" not in label} == {4}


def test_a_weight_of_zero_removes_loss_and_teacher() -> None:
    found = recipes("ablations/discrimination_weight")
    assert what_it_has(found["weight=0.0"]) == (True, False, False)
    assert what_it_has(found["weight=0.03"]) == (True, True, True)


def test_every_learning_rate_is_tried_for_every_arm() -> None:
    rates = {label: recipe.optimizer.params.lr.start for label, recipe in recipes("ablations/learning_rate").items()}
    assert len(rates) == len(GROUNDS) * 3
    assert all(f"lr.start={rate!r}" in label for label, rate in rates.items())


def test_the_learning_rate_of_each_arm_is_the_best_that_was_found() -> None:
    """As the recipe states: by the mean classifier distance of the published tuning."""
    results = RECIPES.parent / "docs" / "results" / "learning_rate"
    plan = json.loads((results / "plan.json").read_text(encoding="utf-8"))
    found: dict[str, list[float]] = {}
    for line in (results / "results.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["arm"], []).append(row["scores"]["classifier.fd"])
    for label in GROUNDS:
        points = {
            arm["changes"]["optimizer.lr.start"]: found[arm["label"]] for arm in plan["arms"] if arm["named"] == label
        }
        assert len(points) == 3 and all(len(figures) == 2 for figures in points.values())
        assert rate(label) == min(points, key=lambda point: sum(points[point])), label


def test_a_misspelt_key_of_an_arm_is_named(tmp_path: Path) -> None:
    text = (RECIPES / "ablations" / "teacher_noise.toml").read_text(encoding="utf-8")
    wrong = text.replace('"../quickstart.toml"', '"quickstart"').replace("teacher_sigma", "teacher_sigmas")
    (tmp_path / "wrong.toml").write_text(wrong, encoding="utf-8")
    with pytest.raises(SdditError, match=r"arm 'low': unknown key 'pair_sampler.teacher_sigmas'"):
        expand(load(tmp_path / "wrong.toml"))


def test_a_shipped_ablation_runs_from_end_to_end(tmp_path: Path) -> None:
    smallest = ["train.steps=2", "train.batch=16", "train.log_every=1", "optimizer.warmup=0", "sampler.steps=2"]
    smallest += ["evaluate.samples=20", "evaluate.per_class=1", "evaluate.kid_subset_size=10", "ablation.seeds=[0]"]
    smallest += ["ablation.grid.loss.discrimination.prototypes=[32, 512]"]
    smallest += ["evaluate.features=['classifier']", "ablation.metrics=['classifier.fd', 'classifier.class_accuracy']"]
    found = expand(load(RECIPES / "ablations" / "prototypes.toml", smallest))
    results = run_ablation(found, out=tmp_path, device="cpu", progress=Progress(), write_report=write_report, jobs=2)
    assert [(row.arm, row.status) for row in results.runs] == [
        ("prototypes=32", "finished"),
        ("prototypes=512", "finished"),
    ]
    for metric in results.plan.metrics:
        assert all(results.figure(row.arm, metric) for row in results.runs), metric
