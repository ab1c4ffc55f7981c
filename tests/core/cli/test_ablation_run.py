"""`sddit-run RECIPE` for a recipe with arms."""

from __future__ import annotations

import json
import re
from pathlib import Path

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


def test_dry_run_prints_costs_and_all_prints_ids(sddit_run, write, ablation, tmp_path):
    text = f"{ARMS}[teacher]\nmomentum = 0.9\n"
    result = sddit_run("-n", write(text))
    plan = make_plan(ablation(text), tmp_path / "runs")
    assert result.status == 0
    assert result.stdout.startswith(f"abl-{plan.id}\nDoes it help?\nbudget: 32 images per arm\n")
    assert "2 arms x 2 seeds = 4; 0 finished; training " in result.stdout
    assert not any(run.id in result.stdout for run in plan.runs)
    assert "pair_sampler.mask_ratio = 0.25" in result.stdout
    assert "masked: warning: loss.agree.momentum has no effect here" in result.stdout
    assert "masked: no effect here: teacher.momentum" in result.stdout
    assert len(result.stdout.splitlines()) <= 40
    everything = sddit_run("-n", "--all", write(text))
    assert all(run.id in everything.stdout for run in plan.runs)
    assert result.stdout in everything.stdout
    assert re.search(r"^momentum +0.9 +\S+:\d+", everything.stdout, re.MULTILINE)
    assert not (tmp_path / "runs").exists()


def test_dry_run_prints_the_plan_as_json(sddit_run, write):
    result = json.loads(sddit_run("-n", write(ARMS), "--json").stdout)
    assert [arm["label"] for arm in result["arms"]] == ["base", "masked"]
    assert all(arm["steps"] == 4 and arm["flops"] > 0 and arm["parameters"] > 0 for arm in result["arms"])
    assert [row["status"] for row in result["states"]] == ["waiting"] * 4


def test_plan_with_a_time_budget_states_that_it_is_not_measured_yet(sddit_run, write):
    path = write(ARMS.replace("seeds", 'budget = "time"\nseeds'))
    result = sddit_run("-n", path)
    assert "by time" in result.stdout
    assert "the first command measures" in result.stdout
    result = sddit_run(path, "--only", "0123456789ab")
    assert (result.status, "SD-R153" in result.stderr) == (2, True)


@pytest.mark.usefixtures("pretending")
def test_table_is_printed_at_the_end(sddit_run, write):
    result = sddit_run(write(ARMS), "--jobs", 4)
    assert result.status == 0, result.stderr
    assert "1.5 ± 0.71" in result.stdout
    assert "prints this table again" in result.stdout
    result = json.loads(sddit_run(write(ARMS), "--json").stdout)
    assert [row["status"] for row in result["rows"]] == ["finished"] * 4
    assert "4 finished; training" in sddit_run("-n", write(ARMS)).stdout
    assert re.search(r"^base +2 of 2 finished", sddit_run("-n", write(ARMS)).stdout, re.MULTILINE)


@pytest.mark.usefixtures("pretending")
def test_failed_runs_give_exit_status_9(sddit_run, write):
    result = sddit_run(write(ARMS.replace("masked", "bad")), "--jobs", 4)
    assert result.status == 9
    assert "SD-X810: 2 of 4 runs failed" in result.stderr
    assert "bad seed 0: SD-N501: a non-finite value at step 2" in result.stderr
    assert "0 of 2, 2 failed" in result.stdout
    (plan,) = Path("runs").glob("*/plan.json")
    assert "warning: bad seed 0 failed: SD-N501" in sddit_run("table", plan.parent).stderr


def test_only_executes_one_run_of_the_plan(sddit_run, write, ablation, tmp_path):
    plan = make_plan(ablation(ARMS), tmp_path / "runs")
    result = sddit_run(write(ARMS), "--only", plan.runs[3].id)
    assert result.status == 0, result.stderr
    assert (plan.runs[3].folder / "report.html").is_file()
    results = gather(plan.folder)
    assert [row.status for row in results.runs] == ["waiting", "waiting", "waiting", "finished"]
    assert (plan.folder / "results.jsonl").is_file()
    assert "already finished" in sddit_run(write(ARMS), "--only", plan.runs[3].id).stdout


def test_failure_of_one_run_is_recorded(sddit_run, write, ablation, tmp_path):
    plan = make_plan(ablation(ARMS), tmp_path / "runs")
    plan.runs[0].folder.mkdir(parents=True)
    (plan.runs[0].folder / "checkpoints").write_text("in the way", encoding="utf-8")
    result = sddit_run(write(ARMS), "--only", plan.runs[0].id)
    assert result.status != 0
    assert gather(plan.folder).runs[0].status == "failed"
    assert gather(plan.folder).runs[0].error.split(":")[0] in result.stderr


def test_unknown_run_id_suggests_the_nearest(sddit_run, write, ablation, tmp_path):
    id = make_plan(ablation(ARMS), tmp_path / "runs").runs[0].id
    result = sddit_run(write(ARMS), "--only", f"{id[:-1]}x")
    assert (result.status, "SD-R152" in result.stderr) == (2, True)
    assert f"did you mean {id!r}?" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
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
def test_contradictory_flags_are_refused(sddit_run, write, flags, message):
    result = sddit_run(write(ARMS), *flags)
    assert result.status == 2
    assert message in result.stderr


@pytest.mark.parametrize("flags", [["--jobs", "2"], ["--only", "x"], ["--no-reuse"]])
def test_ablation_flags_are_refused_for_a_single_run(sddit_run, toy_recipe, flags):
    result = sddit_run(toy_recipe, *flags)
    assert result.status == 2
    assert f"{flags[0]} is for ablations" in result.stderr


def test_kernel_that_cannot_train_on_the_device_is_refused_with_its_arms(sddit_run, write, monkeypatch):
    from sddit.testing.toys.params import ToyAttentionParams

    monkeypatch.setattr(ToyAttentionParams, "devices", property(lambda params: ("cuda",)))
    result = sddit_run(write(ARMS))
    assert result.status == 2
    assert "arms 'base', 'masked': attention kernel 'toy' does not train on cpu" in result.stderr


def test_seeds_on_the_command_line_make_any_recipe_an_ablation(sddit_run, toy_recipe):
    result = sddit_run("-n", toy_recipe, "ablation.seeds=[0,1,2]", "--all")
    assert result.status == 0
    assert "seed 2" in result.stdout


def test_show_lists_the_keys_of_ablation(sddit_run, toys):
    result = sddit_run("show", "ablation")
    assert result.status == 0
    assert all(key in result.stdout for key in ("seeds", "baseline", "metrics", "budget", "arms", "grid", "pairs"))
