"""Runs as processes: several at once, failing, stopped, continued, repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sddit.ablations import runner
from sddit.ablations.analysis.results import RESULTS, gather
from sddit.ablations.planning import measurements
from sddit.ablations.planning.plan import make_plan
from sddit.ablations.planning.records import LeakCheck
from sddit.ablations.runner import copy_number, known_plan, run_ablation, threads_for
from sddit.cli.app import call
from sddit.errors import SdditError
from sddit.progress import Progress
from sddit.reports.ablation.ablation_report import write_report
from sddit.storage.lock import holder
from sddit.storage.metrics_log import read_metrics
from sddit.storage.run_folder import RunFolder

ARMS = """
[ablation]
seeds = [0, 1]
metrics = ["toy.fd"]
[ablation.arms.base]
[ablation.arms.masked]
pair_sampler.mask_ratio = 0.25
"""


class Notes(Progress):
    """What is said on the way."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def note(self, text, style=""):
        self.lines.append(text)


def go(found, tmp_path, **settings):
    return run_ablation(
        found,
        out=tmp_path / "runs",
        device="cpu",
        progress=settings.pop("progress", Progress()),
        write_report=write_report,
        **settings,
    )


def rows_of(results):
    return {(row.arm, row.seed): row for row in results.runs}


def log_of(results, row):
    return (results.folder / "logs" / f"{row.folder.removeprefix('../')}.txt").read_text(encoding="utf-8")


class InThisProcess:
    """A run in this process, in the place of one in its own: torch is imported once."""

    def __init__(self, command, **_):
        self.returncode = call(command[4:])

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        return self.returncode

    def send_signal(self, number):
        pass


def test_two_arms_and_two_seeds_end_to_end(ablation, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.subprocess, "Popen", InThisProcess)
    monkeypatch.setattr(runner, "POLL", 0)
    results = go(ablation(ARMS), tmp_path)
    rows = rows_of(results)
    assert [row.status for row in results.runs] == ["finished"] * 4
    for row in results.runs:
        folder = results.folder / row.folder
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["toy"]
        assert row.scores["toy.fd"] == scores["fd"]
        assert row.scores["toy.recall"] == scores["recall"]
        assert (row.steps, row.images) == (4, 32)
        assert row.flops == pytest.approx(json.loads((folder / "cost.json").read_text(encoding="utf-8"))["flops"])
        assert row.seconds == read_metrics(folder / "metrics.jsonl")[-1]["seconds"]
        assert row.peak_memory > 1e6
        assert folder.name.endswith(row.id)
    assert rows["base", 0].flops < rows["masked", 0].flops  # the base hides half of the tokens
    assert len({row.scores["toy.fd"] for row in results.runs}) == 4
    lines = (results.folder / RESULTS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["scores"] for line in lines] == [dict(row.scores) for row in results.runs]


def test_a_copy_made_again_in_other_processes_is_bit_identical(tmp_path, write):
    """`--no-reuse`: equal arms, which share a run by default, are each run again, from the command line."""
    (tmp_path / "toys.py").write_text("from sddit.testing.toys.plugin import *\n", encoding="utf-8")
    text = write("[ablation]\nseeds = [0]\n[ablation.arms.base]\n[ablation.arms.same]\n").read_text(encoding="utf-8")
    (tmp_path / "equal.toml").write_text(f'plugins = ["./toys.py"]\n{text}\n', encoding="utf-8")
    command = [sys.executable, "-m", "sddit", "equal.toml", "--no-reuse", "--jobs", "2", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    base, duplicate = (tmp_path / said["folder"] / row["folder"] for row in said["rows"])
    assert base != duplicate
    assert base.parent == duplicate.parent == tmp_path / said["folder"]
    names = [path.relative_to(base) for path in sorted(base.glob("checkpoints/*/*.safetensors"))]
    assert {name.name for name in names} == {"model.safetensors", "optimizer.safetensors", "teacher.safetensors"}
    for name in (*names, "samples/samples.npz", "scores.json"):
        assert (base / name).read_bytes() == (duplicate / name).read_bytes()
    assert said["rows"][0]["scores"] == said["rows"][1]["scores"]
    assert said["rows"][0]["seconds"] != said["rows"][1]["seconds"]  # they are two runs


@pytest.mark.usefixtures("pretending")
def test_what_is_finished_is_not_run_again(ablation, tmp_path):
    found = ablation(ARMS)
    first = go(found, tmp_path, jobs=4)
    assert first.finished
    notes = Notes()
    again = go(found, tmp_path, progress=notes)
    assert again.runs == first.runs
    assert "4 runs, 4 of them already finished" in notes.lines[1]


@pytest.mark.usefixtures("pretending")
@pytest.mark.parametrize(
    ("text", "said"), [(ARMS, "2 arms x 2 seeds, "), ("[ablation]\nseeds = [0]", "1 arm x 1 seed, ")]
)
def test_the_first_line_counts_arms_and_seeds(ablation, tmp_path, text, said):
    notes = Notes()
    results = go(ablation(text), tmp_path, progress=notes)
    first = next(line for line, text in enumerate(notes.lines) if said in text)
    assert notes.lines[first + 1].startswith("1 run, " if len(results.runs) == 1 else "4 runs, ")


@pytest.mark.usefixtures("pretending")
def test_more_seeds_run_only_what_is_new(ablation, tmp_path):
    go(ablation(ARMS), tmp_path, jobs=4)
    notes = Notes()
    results = go(ablation(ARMS, "ablation.seeds=[0,1,2]"), tmp_path, jobs=4, progress=notes)
    assert "6 runs, 4 of them already finished" in notes.lines[1]
    assert results.finished


@pytest.mark.usefixtures("pretending")
def test_a_failed_run_stays_in_the_results_and_the_others_continue(ablation, tmp_path):
    notes = Notes()
    results = go(ablation(ARMS.replace("masked", "bad")), tmp_path, progress=notes)
    rows = rows_of(results)
    assert {key: row.status for key, row in rows.items()} == {
        ("base", 0): "finished",
        ("bad", 0): "failed",
        ("base", 1): "finished",
        ("bad", 1): "failed",
    }
    assert rows["bad", 0].error == "SD-N501: a non-finite value at step 2"
    assert rows["bad", 0].scores == {}
    assert any(line.startswith("warning: bad seed 0 failed: SD-N501") for line in notes.lines)


@pytest.mark.usefixtures("pretending")
def test_a_killed_run_is_a_failed_one(ablation, tmp_path):
    results = go(ablation(ARMS.replace("masked", "killed"), "ablation.seeds=[0]"), tmp_path)
    assert rows_of(results)["killed", 0].error == "killed by SIGKILL"


@pytest.mark.usefixtures("pretending")
def test_a_fixed_run_is_tried_again(ablation, tmp_path, monkeypatch):
    found = ablation(ARMS.replace("masked", "bad"), "ablation.seeds=[0]")
    assert rows_of(go(found, tmp_path))["bad", 0].status == "failed"
    trainer = tmp_path / "trainer.py"
    trainer.write_text(trainer.read_text(encoding="utf-8").replace('"bad" in', '"none" in'), encoding="utf-8")
    fixed = go(found, tmp_path)
    assert fixed.finished
    assert rows_of(fixed)["bad", 0].error == ""


@pytest.mark.usefixtures("pretending")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_stop_is_handed_on_waited_for_and_continued(ablation, tmp_path, number, status):
    found = ablation(ARMS.replace("masked", "slow"), "train.steps=30", "ablation.seeds=[0]")
    plan = make_plan(found, tmp_path / "runs")
    slow = plan.runs[1].folder

    def stop_when_under_way():
        while not (slow / "metrics.jsonl").is_file():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_under_way).start()
    with pytest.raises(SystemExit) as stopped:
        go(found, tmp_path)
    assert stopped.value.code == status
    rows = rows_of(gather(plan.folder))
    assert [row.status for row in rows.values()] == ["finished", "stopped"]
    taken = rows["slow", 0].steps
    assert 0 < taken < 30
    assert "1 of 2 runs are still to be finished" in (plan.folder / "report.html").read_text(encoding="utf-8")
    assert "saved" in log_of(gather(plan.folder), rows["slow", 0])

    results = go(found, tmp_path)
    assert results.finished
    assert "still to be finished" not in (plan.folder / "report.html").read_text(encoding="utf-8")
    assert f"begun at {taken}" in log_of(results, rows["slow", 0])


@pytest.mark.usefixtures("pretending")
def test_no_process_outlives_an_error_of_the_ablation(ablation, tmp_path, monkeypatch):
    found = ablation(ARMS.replace("masked", "slow"), "train.steps=200", "ablation.seeds=[0]")
    children = []
    real = runner.start
    monkeypatch.setattr(runner, "start", lambda *arguments: children.append(real(*arguments)) or children[-1])

    def broken(*arguments, **settings):
        raise OSError("the disk")

    monkeypatch.setattr(runner, "record_end", broken)
    with pytest.raises(OSError, match="the disk"):
        go(found, tmp_path, jobs=2)
    assert len(children) == 2
    assert all(child.process.poll() is not None for child in children)


@pytest.mark.usefixtures("pretending")
@pytest.mark.parametrize("jobs", [1, 3])
def test_as_many_processes_as_asked_for(ablation, tmp_path, monkeypatch, jobs):
    found = ablation(ARMS, "ablation.seeds=[0,1,2]")
    alive, most = [], []
    real = runner.start

    def start(*arguments):
        child = real(*arguments)
        alive.append(child)
        most.append(sum(child.process.returncode is None for child in alive))
        return child

    monkeypatch.setattr(runner, "start", start)
    assert go(found, tmp_path, jobs=jobs).finished
    assert max(most) == jobs


@pytest.mark.usefixtures("pretending")
def test_threads_are_divided_once_and_kept(ablation, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [threads_for(jobs) for jobs in (1, 2, 3, 20)] == [None, 4, 2, 1]
    found = ablation(ARMS, "ablation.seeds=[0]")
    results = go(found, tmp_path, jobs=4)
    recipe = json.loads(next((results.folder / "recipes").iterdir()).read_text(encoding="utf-8"))
    assert recipe["train"]["threads"] == results.plan.threads == 2
    assert go(ablation(ARMS, "ablation.seeds=[0,1]"), tmp_path, jobs=1).plan.threads == 2
    assert go(found, tmp_path, jobs=2, reuse=False).plan.threads == 2  # a copy is made as the first one was


@pytest.mark.usefixtures("pretending")
def test_leaks_are_tested_once(ablation, tmp_path, monkeypatch):
    looked = []

    def pretend(recipe):
        looked.append(recipe.run_id)
        hides = recipe.pair_sampler.params.mask_ratio < 0.5
        return LeakCheck(("x of view 'student'",) if hides else (), "" if hides else "no time")

    monkeypatch.setattr(measurements, "check_recipe", pretend)
    found = ablation(ARMS, "ablation.seeds=[0]")
    plan = go(found, tmp_path).plan
    assert [arm.leaks for arm in plan.arms] == [
        LeakCheck((), "no time"),
        LeakCheck(("x of view 'student'",), ""),
    ]
    assert len(looked) == 2
    again = go(ablation(ARMS), tmp_path).plan
    assert len(looked) == 2
    assert again.arms == plan.arms
    assert known_plan(found, tmp_path / "runs").record().arms[1].leaks == LeakCheck(("x of view 'student'",))
    assert make_plan(found, tmp_path / "elsewhere").record().arms[1].leaks is None


@pytest.mark.usefixtures("pretending")
def test_a_pace_is_measured_once(ablation, tmp_path, monkeypatch):
    measured = []

    def pretend(recipes, **_):
        measured.append(set(recipes))
        return {id: 0.1 * (1 + number) for number, id in enumerate(recipes)}

    monkeypatch.setattr(measurements, "seconds_per_step", pretend)
    found = ablation(ARMS.replace("seeds", 'budget = "time"\nseeds'), "train.steps=10")
    assert known_plan(found, tmp_path / "runs").runs == ()
    results = go(found, tmp_path, jobs=4)
    assert [arm.steps for arm in results.plan.arms] == [10, 5]
    assert len(measured) == 1
    assert go(found, tmp_path).finished
    assert go(found, tmp_path, reuse=False, jobs=4).finished
    assert [run.recipe.train.steps for run in known_plan(found, tmp_path / "runs").runs] == [10, 5, 10, 5]
    assert len(measured) == 1


def test_the_pace_is_that_of_real_steps_each_recipe_in_turn(ablation, monkeypatch):
    monkeypatch.setattr(measurements, "SECONDS", 0.01)
    found = ablation("[ablation.arms.base]\n[ablation.arms.deep]\nbackbone.depth = 3\n")
    recipes = {arm.label: arm.recipe for arm in found.arms}
    turns = []
    real = measurements.one_turn

    def turn(recipe, device):
        turns.append((recipe.backbone.params.depth, recipe.train.threads, real(recipe, device)))
        return turns[-1][-1]

    monkeypatch.setattr(measurements, "one_turn", turn)
    seen = measurements.seconds_per_step(recipes, device="cpu", threads=1, progress=Progress())
    assert [turn[:2] for turn in turns] == [(2, 1), (3, 1)] * 3
    assert seen["deep"] == sorted(seconds for depth, _, seconds in turns if depth == 3)[1] > 0


@pytest.mark.usefixtures("pretending")
def test_a_further_copy_is_continued_until_it_is_finished(ablation, tmp_path):
    found = ablation(ARMS.replace("masked", "bad"), "ablation.seeds=[0]")
    out = tmp_path / "runs"
    assert copy_number(found, out) == 2
    go(found, tmp_path, reuse=False)
    assert copy_number(found, out) == 2  # a run of it failed
    good = ablation(ARMS)
    copies = [go(good, tmp_path, reuse=False, jobs=4).folder.name.rpartition("-")[2] for _ in range(2)]
    assert copies == ["copy2", "copy3"]
    assert not list(out.glob("abl-base-*"))  # its runs lie in it


@pytest.mark.usefixtures("pretending")
def test_two_commands_at_once_are_refused(ablation, tmp_path):
    found = ablation(ARMS)
    with RunFolder(make_plan(found, tmp_path / "runs").folder), pytest.raises(SdditError) as refused:
        go(found, tmp_path)
    assert refused.value.problems[0].code == "SD-F701"


@pytest.mark.usefixtures("pretending")
@pytest.mark.parametrize("finishes", [True, False])
def test_a_run_that_another_process_has_locked_is_waited_for(ablation, tmp_path, finishes):
    """What a command leaves behind that was killed itself, or what `--only` runs elsewhere."""
    found = ablation(ARMS, "ablation.seeds=[0]")
    base, masked = (run.folder for run in make_plan(found, tmp_path / "runs").runs)
    notes = Notes()
    with RunFolder(base) as held:
        done = threading.Thread(target=go, args=(found, tmp_path), kwargs={"progress": notes, "jobs": 2})
        done.start()
        while not (masked / "report.html").is_file():
            time.sleep(0.01)
        assert not (base / "metrics.jsonl").exists()
        if finishes:
            held.write_json("scores.json", {"toy": {"fd": 1.0}})
            held.write_text("report.html", "")
    done.join()
    assert sum(f"base seed 0: locked by pid {os.getpid()}" in line for line in notes.lines) == 1
    assert (base / "report.html").is_file()
    assert (base / "metrics.jsonl").exists() != finishes


def test_a_missing_or_released_folder_is_not_locked(tmp_path):
    assert holder(tmp_path / "none") == ""
    with RunFolder(tmp_path / "run"):
        assert holder(tmp_path / "run").startswith(f"pid {os.getpid()} on host ")
    assert holder(tmp_path / "run") == ""


def test_planning_and_gathering_need_no_torch():
    modules = "sddit.ablations.runner, sddit.ablations.analysis.table, sddit.cli.ablation_run"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.usefixtures("pretending")
def test_a_process_that_ends_with_0_too_early_is_not_finished(ablation, tmp_path):
    script = tmp_path / "trainer.py"
    begin = 'if "masked" in recipe["name"]:\n    raise SystemExit(0)\n'
    script.write_text(script.read_text().replace("while step <", f"{begin}while step <"))
    results = go(ablation(ARMS, "ablation.seeds=[0]"), tmp_path)
    rows = rows_of(results)
    assert rows["base", 0].status == "finished"
    assert rows["masked", 0].status == "failed"
    assert "ended with status 0 before the run was finished" in rows["masked", 0].error


@pytest.mark.usefixtures("pretending")
@pytest.mark.parametrize("text", [None, '{"toy": {"fd": NaN}}', '{"toy": {"fd": "NaN"}}', '{"toy": {}}', "{}"])
def test_a_missing_or_nan_score_is_made_again(ablation, tmp_path, text):
    found = ablation(ARMS, "ablation.seeds=[0]")
    before = rows_of(go(found, tmp_path))
    scores = tmp_path / "runs" / before["masked", 0].folder.removeprefix("../") / "scores.json"
    if text is None:
        scores.unlink()
    else:
        scores.write_text(text)
    damaged = rows_of(gather(tmp_path / "runs" / go_folder(found, tmp_path)))
    assert (damaged["base", 0].status, damaged["masked", 0].status) == ("finished", "failed")
    assert damaged["masked", 0].scores == {}
    assert rows_of(go(found, tmp_path)) == before


def go_folder(found, tmp_path):
    """The name of the folder of an ablation."""
    return make_plan(found, tmp_path / "runs").folder.name


@pytest.mark.usefixtures("pretending")
def test_a_nan_that_is_measured_again_is_a_failed_run(ablation, tmp_path, sddit_run):
    script = tmp_path / "trainer.py"
    script.write_text(script.read_text().replace('"fd": 1.0 + recipe["seed"]', '"fd": float("nan")'))
    results = go(ablation(ARMS, "ablation.seeds=[0]"), tmp_path)
    assert {row.status for row in results.runs} == {"failed"}
    assert all("toy.fd is nan" in row.error for row in results.runs)
    (tmp_path / "out").mkdir()
    result = sddit_run(tmp_path / "abl.toml", "ablation.seeds=[0]", "--out", tmp_path / "runs")
    assert result.status == 9
    assert "2 of 2 runs failed" in result.stderr


@pytest.mark.usefixtures("pretending")
def test_a_folder_that_holds_another_run_does_not_count(ablation, tmp_path):
    results = go(ablation(ARMS, "ablation.seeds=[0]"), tmp_path)
    recipe = results.folder / rows_of(results)["masked", 0].folder / "recipe.resolved.json"
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "run_ids": ["0123456789ab"]}))
    row = rows_of(gather(results.folder))["masked", 0]
    assert row.status == "failed"
    assert "holds run 0123456789ab" in row.error


@pytest.mark.usefixtures("pretending")
def test_runs_of_another_revision_of_the_numbers_are_named_and_not_used(ablation, tmp_path, monkeypatch):
    first, notes = go(ablation(ARMS, "ablation.seeds=[0]"), tmp_path), Notes()
    monkeypatch.setattr("sddit.__numerics__", "2")
    monkeypatch.setattr(runner, "__numerics__", "2")
    second = go(ablation(ARMS, "ablation.seeds=[0]"), tmp_path, progress=notes)
    assert first.folder != second.folder
    assert not {row.id for row in first.runs} & {row.id for row in second.runs}
    assert [line for line in notes.lines if "not used: 2 runs of another numerics revision than 2" in line]
    assert gather(first.folder).finished and second.finished
