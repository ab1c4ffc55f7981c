"""Runs, ids and folders."""

from __future__ import annotations

import json

from sddit.ablations.planning.measurements import with_threads
from sddit.ablations.planning.plan import ablation_id, is_run_of, make_plan
from sddit.recipes.resolve import changed, resolve

ARMS = """
[ablation]
seeds = [0, 3]
[ablation.arms.base]
[ablation.arms.masked]
pair_sampler.mask_ratio = 0.25
[ablation.arms.same]
"""


def put(folder, recipe, *files):
    folder.mkdir(parents=True)
    (folder / "recipe.resolved.json").write_text(json.dumps(recipe.to_json()), encoding="utf-8")
    for name in files:
        (folder / name).touch()


def test_a_run_has_the_id_that_it_has_alone(ablation, write, tmp_path):
    plan = make_plan(ablation(ARMS), tmp_path)
    alone = resolve(write(""), ["pair_sampler.mask_ratio=0.25", "seed=3"])
    (run,) = (run for run in plan.runs if (run.arm, run.seed) == ("masked", 3))
    assert run.id == alone.run_id
    assert run.folder == tmp_path / f"abl-masked-{run.id}"


def test_seed_after_seed_so_that_arms_can_be_compared_early(ablation, tmp_path):
    plan = make_plan(ablation(ARMS), tmp_path)
    assert [(run.arm, run.seed) for run in plan.runs] == [(a, s) for s in (0, 3) for a in ("base", "masked", "same")]


def test_seeds_count_from_the_seed_of_the_recipe_or_of_the_arm(ablation, tmp_path):
    plan = make_plan(ablation(ARMS + "seed = 100\n", "seed=10"), tmp_path)
    assert [run.recipe.seed for run in plan.runs] == [10, 10, 100, 13, 13, 103]


def test_equal_arms_share_their_runs(ablation, tmp_path):
    plan = make_plan(ablation(ARMS), tmp_path)
    base, _, same = plan.runs[:3]
    assert base.folder == same.folder
    assert [run.arm for run in plan.needed] == ["base", "masked", "base", "masked"]


def test_in_a_further_copy_nothing_is_shared(ablation, tmp_path):
    plan = make_plan(ablation(ARMS), tmp_path, copy=2)
    assert plan.folder.name == f"abl-{plan.id}-copy2"
    assert {run.folder.parent for run in plan.runs} == {plan.folder}
    assert len(plan.needed) == len(plan.runs) == 6
    assert plan.runs[0].id == plan.runs[2].id


def test_a_run_made_elsewhere_is_found_and_a_finished_one_first(ablation, write, tmp_path):
    found = ablation(ARMS)
    base = found.base
    put(tmp_path / f"alone-{base.run_id}", base)
    assert make_plan(found, tmp_path).runs[0].folder.name == f"alone-{base.run_id}"
    put(tmp_path / f"zulu-{base.run_id}", base, "report.html")
    run = make_plan(found, tmp_path).runs[0]
    assert run.folder.name == f"zulu-{base.run_id}"
    assert run.recipe.name == "zulu"  # so that a process continues in that folder


def test_a_run_that_was_led_elsewhere_is_not_reused(ablation, tmp_path):
    """--resume --allow-change leaves the folder's name and changes what it holds."""
    found = ablation(ARMS)
    folder = tmp_path / f"alone-{found.base.run_id}"
    put(folder, changed(found.base, ["train.steps=9"]), "report.html")
    assert not is_run_of(folder, found.base)
    assert make_plan(found, tmp_path).runs[0].folder.name == f"abl-base-{found.base.run_id}"
    put(tmp_path / "same", changed(found.base, ["train.log_every=3"]))
    assert is_run_of(tmp_path / "same", found.base)  # a free key
    (tmp_path / "same" / "recipe.resolved.json").write_text("{", encoding="utf-8")
    assert not is_run_of(tmp_path / "same", found.base)


def test_more_seeds_and_metrics_keep_the_id_and_other_arms_do_not(ablation):
    ids = [
        ablation_id(ablation(text))
        for text in (
            ARMS,
            ARMS.replace("[0, 3]", "[0, 3, 4]"),
            ARMS.replace("seeds", 'question = "?"\nmetrics = ["toy.recall"]\nseeds'),
            ARMS.replace("0.25", "0.75"),
            ARMS.replace("seeds", 'budget = "flops"\nseeds'),
        )
    ]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[2:])) == 3


def test_threads_are_given_only_where_the_recipe_leaves_them_open(ablation):
    base = ablation(ARMS).base
    assert with_threads(base, None) is base
    assert with_threads(base, 3).train.threads == 3
    assert with_threads(base, 3).run_id == base.run_id
    assert with_threads(changed(base, ["train.threads=2"]), 3).train.threads == 2


def test_the_plan_as_json(ablation, tmp_path):
    plan = make_plan(ablation(ARMS), tmp_path)
    text = json.loads(json.dumps(plan.record().to_json()))
    assert text["runs"][1] == {
        "arm": "masked",
        "seed": 0,
        "id": plan.runs[1].id,
        "folder": f"../abl-masked-{plan.runs[1].id}",
    }
    assert text["budget"] == {"rule": "images", "amount": 32.0, "seconds_per_step": {}}
    masked = text["arms"][1]
    assert masked["changes"] == {"pair_sampler.mask_ratio": 0.25}
    assert masked["steps"] * masked["flops_per_step"] == masked["flops"]
    assert masked["parameters"] > masked["sampled_parameters"]  # a head that only trains


def test_every_setting_of_an_added_or_removed_loss_differs(ablation, tmp_path):
    arms = """
    [ablation]
    seeds = [0]
    [ablation.arms.without]
    loss.agree = false
    [ablation.arms.weak]
    loss.agree.weight = 0.25
    [ablation.arms.strong]
    loss.agree.weight = 0.5
    """
    plan = make_plan(ablation(arms), tmp_path).record()
    without, weak, strong = (arm.differs for arm in plan.arms)
    assert without == ()
    assert ("loss.agree.weight", None, 0.25) in weak
    assert ("loss.agree.weight", None, 0.5) in strong
    assert [one for one in weak if one not in strong] == [("loss.agree.weight", None, 0.25)]
    assert not any(isinstance(value, dict) for _, *values in weak for value in values)
    turned = make_plan(ablation(arms, "ablation.baseline=weak"), tmp_path).record().arms
    assert ("loss.agree.weight", 0.25, None) in turned[0].differs
    assert turned[2].differs == (("loss.agree.weight", 0.25, 0.5),)  # a loss of both sides: what is not the same
