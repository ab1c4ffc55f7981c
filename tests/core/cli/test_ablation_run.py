"""`sddit-run RECIPE` where the recipe has arms."""

from __future__ import annotations

import json
import re

import pytest

from sddit.ablations.analysis.results import gather
from sddit.ablations.planning.plan import make_plan

ARMS = """
[ablation]
seeds = [0, 1]
question = "Does it help?"
[ablation.arms.base]
[ablation.arms.masked]
pair_sampler.mask_ratio = 0.25
loss.agree.weight = 0.0
loss.agree.momentum = 0.5
"""


def test_the_plan_is_printed_with_costs_and_ids(sddit_run, write, ablation, tmp_path):
    text = f"{ARMS}[teacher]\nmomentum = 0.9\n"
    said = sddit_run("-n", write(text))
    plan = make_plan(ablation(text), tmp_path / "runs")
    assert said.status == 0
    assert said.out.startswith(f"abl-{plan.id}\nDoes it help?\nbudget: 32 images per arm\n")
    assert "2 arms x 2 seeds = 4; 0 finished; training " in said.out
    assert not any(run.id in said.out for run in plan.runs)
    assert "pair_sampler.mask_ratio = 0.25" in said.out
    assert "masked: warning: loss.agree.momentum has no effect here" in said.out
    assert "masked: no effect here: teacher.momentum" in said.out
    assert len(said.out.splitlines()) <= 40
    everything = sddit_run("-n", "--all", write(text))
    assert all(run.id in everything.out for run in plan.runs)
    assert said.out in everything.out
    assert re.search(r"^momentum +0.9 +\S+:\d+", everything.out, re.MULTILINE)
    assert not (tmp_path / "runs").exists()


def test_the_plan_as_json(sddit_run, write):
    said = json.loads(sddit_run("-n", write(ARMS), "--json").out)
    assert [arm["label"] for arm in said["arms"]] == ["base", "masked"]
    assert all(arm["steps"] == 4 and arm["flops"] > 0 and arm["parameters"] > 0 for arm in said["arms"])
    assert [row["status"] for row in said["states"]] == ["waiting"] * 4


def test_a_plan_of_time_says_that_it_is_to_be_measured(sddit_run, write):
    path = write(ARMS.replace("seeds", 'budget = "time"\nseeds'))
    said = sddit_run("-n", path)
    assert "by time" in said.out
    assert "the first command measures" in said.out
    said = sddit_run(path, "--only", "0123456789ab")
    assert (said.status, "SD-R153" in said.err) == (2, True)


@pytest.mark.usefixtures("pretending")
def test_the_table_is_shown_at_the_end(sddit_run, write):
    said = sddit_run(write(ARMS), "--jobs", 4)
    assert said.status == 0, said.err
    assert "1.5 ± 0.71" in said.out
    assert "prints this table again" in said.out
    said = json.loads(sddit_run(write(ARMS), "--json").out)
    assert [row["status"] for row in said["rows"]] == ["finished"] * 4
    assert "4 finished; training" in sddit_run("-n", write(ARMS)).out
    assert re.search(r"^base +2 of 2 finished", sddit_run("-n", write(ARMS)).out, re.MULTILINE)


@pytest.mark.usefixtures("pretending")
def test_failed_runs_give_the_status_of_failed_processes(sddit_run, write):
    said = sddit_run(write(ARMS.replace("masked", "bad")), "--jobs", 4)
    assert said.status == 9
    assert "SD-X810: 2 of 4 runs failed" in said.err
    assert "bad seed 0: SD-N501: a non-finite value at step 2" in said.err
    assert "0 of 2, 2 failed" in said.out


def test_one_run_of_the_plan(sddit_run, write, ablation, tmp_path):
    plan = make_plan(ablation(ARMS), tmp_path / "runs")
    said = sddit_run(write(ARMS), "--only", plan.runs[3].id)
    assert said.status == 0, said.err
    assert (plan.runs[3].folder / "report.html").is_file()
    results = gather(plan.folder)
    assert [row.status for row in results.runs] == ["waiting", "waiting", "waiting", "finished"]
    assert (plan.folder / "results.jsonl").is_file()
    assert "already finished" in sddit_run(write(ARMS), "--only", plan.runs[3].id).out


def test_a_failure_of_one_run_is_noted(sddit_run, write, ablation, tmp_path):
    plan = make_plan(ablation(ARMS), tmp_path / "runs")
    plan.runs[0].folder.mkdir(parents=True)
    (plan.runs[0].folder / "checkpoints").write_text("in the way", encoding="utf-8")
    said = sddit_run(write(ARMS), "--only", plan.runs[0].id)
    assert said.status != 0
    assert gather(plan.folder).runs[0].status == "failed"
    assert gather(plan.folder).runs[0].error.split(":")[0] in said.err


def test_an_unknown_run_is_named_with_the_nearest(sddit_run, write, ablation, tmp_path):
    id = make_plan(ablation(ARMS), tmp_path / "runs").runs[0].id
    said = sddit_run(write(ARMS), "--only", f"{id[:-1]}x")
    assert (said.status, "SD-R152" in said.err) == (2, True)
    assert f"did you mean {id!r}?" in said.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-n", "--jobs", "2"], "-n runs nothing: remove --jobs"),
        (["-n", "--no-reuse"], "-n runs nothing: remove --no-reuse"),
        (["--only", "x", "--jobs", "2"], "--only executes one run of the plan: remove --jobs"),
        (["--only", "x", "--no-reuse"], "--only executes one run of the plan: remove --no-reuse"),
        (["--fresh"], "--fresh is for a single run"),
        (["--resume", "x"], "--resume is for a single run"),
        (["--jobs", "0"], "0 is not in the range"),
    ],
)
def test_contradictory_flags(sddit_run, write, flags, said):
    answer = sddit_run(write(ARMS), *flags)
    assert answer.status == 2
    assert said in answer.err


@pytest.mark.parametrize("flags", [["--jobs", "2"], ["--only", "x"], ["--no-reuse"]])
def test_flags_of_ablations_are_refused_for_a_recipe(sddit_run, toy_recipe, flags):
    answer = sddit_run(toy_recipe, *flags)
    assert answer.status == 2
    assert f"{flags[0]} is for ablations" in answer.err


def test_a_kernel_that_does_not_train_there_is_refused_for_its_arms(sddit_run, write, monkeypatch):
    from sddit.testing.toys.params import ToyAttentionParams

    monkeypatch.setattr(ToyAttentionParams, "devices", property(lambda params: ("cuda",)))
    said = sddit_run(write(ARMS))
    assert said.status == 2
    assert "arms 'base', 'masked': attention kernel 'toy' does not train on cpu" in said.err


def test_seeds_of_any_recipe_from_the_command_line(sddit_run, toy_recipe):
    said = sddit_run("-n", toy_recipe, "ablation.seeds=[0,1,2]", "--all")
    assert said.status == 0
    assert "seed 2" in said.out


def test_the_keys_are_shown(sddit_run, toys):
    said = sddit_run("show", "ablation")
    assert said.status == 0
    assert all(key in said.out for key in ("seeds", "baseline", "metrics", "budget", "arms", "grid", "pairs"))
