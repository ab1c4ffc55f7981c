"""The table of an ablation, from rows that are made up."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from sddit.ablations.analysis.results import failure_of, forget_failure, gather, note_failure
from sddit.ablations.analysis.statistics import Sides, Summary, compare
from sddit.ablations.analysis.table import (
    cells,
    comparisons,
    format_changes,
    format_comparison,
    format_summary,
    records,
)
from sddit.ablations.planning.plan import make_plan
from sddit.errors import SdditError
from sddit.evaluation.scores import Scores
from sddit.interfaces.metric_names import EXTRACTOR_METRICS, KNOWN_METRICS
from sddit.reports.ablation.phrases import interval_note

ARMS = """
[ablation]
seeds = [0, 1, 2]
metrics = ["toy.fd", "toy.recall"]
[ablation.arms.base]
[ablation.arms.better]
loss.agree.weight = 0.25
[ablation.arms.failing]
loss.agree = false
"""
FD = {"base": [1.0, 2.0, 3.0], "better": [0.5, 1.5, 2.6]}


@pytest.fixture
def folder(ablation, tmp_path):
    """The folder of an ablation with two finished arms; of the third, one run failed and one is in progress."""
    plan = make_plan(ablation(ARMS), tmp_path / "runs")
    plan.folder.mkdir(parents=True)
    (plan.folder / "plan.json").write_text(json.dumps(plan.record().to_json()), encoding="utf-8")
    for run in plan.runs:
        if run.arm == "failing":
            continue
        run.folder.mkdir()
        (run.folder / "metrics.jsonl").write_text('{"step": 4.0, "seconds": 2.0}\n', encoding="utf-8")
        scores = {"toy": {"title": "Toy", "fd": FD[run.arm][run.seed], "recall": 0.5, "kid": math.nan}}
        (run.folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
        (run.folder / "report.html").touch()
    first, second, _ = (run for run in plan.runs if run.arm == "failing")
    note_failure(plan.folder, first.folder.name, "SD-N501: a <b>non-finite</b> value")
    second.folder.mkdir()
    (second.folder / "metrics.jsonl").write_text('{"step": 2.0, "seconds": 1.0}\n{"step": 3', encoding="utf-8")
    return plan.folder


def test_a_row_says_what_its_folder_holds(folder):
    rows = gather(folder).runs
    third = ("failed", "stopped", "waiting")
    assert [row.status for row in rows] == [word for last in third for word in ("finished", "finished", last)]
    assert rows[0].scores == {"toy.fd": 1.0, "toy.recall": 0.5}  # numbers only
    assert (rows[0].steps, rows[0].images, rows[0].seconds, rows[0].images_per_second) == (4, 32, 2.0, 16.0)
    assert rows[2].error.startswith("SD-N501")
    assert (rows[5].steps, rows[5].scores, rows[5].peak_memory) == (2, {}, None)


@pytest.mark.parametrize(
    ("name", "text"), [("metrics.jsonl", b"\xff\xfe\n"), ("scores.json", b"[1]"), ("scores.json", b"{")]
)
def test_a_damaged_run_is_a_failed_one_and_the_others_stand(folder, name, text):
    whole = gather(folder)
    (folder / whole.runs[1].folder / name).write_bytes(text)
    found = gather(folder)
    assert found.runs[1].status == "failed"
    assert found.runs[1].error.startswith("its folder is damaged: ")
    assert (found.runs[0], found.runs[2:]) == (whole.runs[0], whole.runs[2:])


def test_an_arm_a_line_with_mean_spread_and_difference(folder):
    headings, rows = cells(gather(folder))
    assert headings[:3] == ["arm", "changes", "runs"]
    assert headings[-4:] == ["toy FD", "difference (95%)", "toy recall", "difference (95%)"]
    base, better, failing = (dict(zip(headings[:9], row, strict=False)) for row in rows)
    assert base["toy FD"] == "2 ± 1"
    assert base["difference (95%)"] == "baseline"
    assert better["toy FD"] == "1.53 ± 1.1"
    assert better["difference (95%)"] == "-0.47 [-0.61, -0.32] better (p = 0.0051)"
    assert better["changes"] == "loss.agree.weight = 0.25"
    assert failing["runs"] == "0 of 3, 1 failed"
    assert failing["toy FD"] == ""
    assert rows[1][-1] == "+0 [0, 0] within noise (p = 1)"


def test_an_interval_without_0_next_to_within_noise_is_explained():
    base = dict(enumerate([1.0, 2.0, 3.0]))
    arms = {f"arm{number}": dict(enumerate([1.1, 1.9, 3.0])) for number in range(5)}
    arms["far"] = dict(enumerate([0.8, 1.7, 2.75]))
    found = compare({label: Sides(arm, base) for label, arm in arms.items()}, better="lower")
    assert found["far"].high < 0
    assert format_comparison(found["far"]) == "-0.25 [-0.37, -0.13] within noise (p = 0.078)"
    assert "Holm-corrected for 6 arms" in interval_note({"toy.fd": found})
    alone = compare({"far": Sides(arms["far"], base)}, better="lower")
    assert format_comparison(alone["far"]) == "-0.25 [-0.37, -0.13] better (p = 0.013)"
    assert interval_note({"toy.fd": alone}) == interval_note({}) == ""


def test_a_copy_of_the_baseline_does_not_differ(folder):
    found = gather(folder)
    base, better, *others = found.plan.arms
    plan = replace(found.plan, arms=(base, replace(better, label="copy"), *others))
    rows = found.runs
    same = type(found)(folder, plan, tuple(
        replace(row, arm="copy" if row.arm == "better" else row.arm, scores={"toy.fd": 1.0 + row.seed})
        for row in rows if row.arm != "failing"
    ))  # fmt: skip
    assert comparisons(same, "toy.fd")["copy"].verdict == "within noise"
    assert comparisons(same, "toy.fd")["copy"].difference == 0


def test_the_record_of_a_program_has_all_digits(folder):
    base, better, failing = records(gather(folder))
    assert better["toy.fd mean"] == pytest.approx(4.6 / 3, abs=1e-15)
    assert better["toy.fd difference"] == pytest.approx(-1.4 / 3, abs=1e-15)
    assert base["toy.fd difference"] is None
    assert (failing["failed"], failing["finished"], failing["toy.fd mean"]) == (1, 0, None)


def test_a_failure_is_kept_until_the_next_try(tmp_path):
    assert failure_of(tmp_path, "a") == ""
    note_failure(tmp_path, "a", "why")
    assert failure_of(tmp_path, "a") == "why"
    forget_failure(tmp_path, "a")
    forget_failure(tmp_path, "a")
    assert failure_of(tmp_path, "a") == ""


def test_a_damaged_plan_is_reported(folder):
    (folder / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(SdditError, match="SD-F704"):
        gather(folder)


def test_changes_in_words():
    assert format_changes({}) == "none"
    assert format_changes({"a.b": False, "c": "x"}) == 'a.b = false, c = "x"'


def test_every_figure_is_one_of_the_scores():
    assert KNOWN_METRICS.keys() - set(EXTRACTOR_METRICS) <= Scores.__dataclass_fields__.keys()
    assert set(EXTRACTOR_METRICS) <= KNOWN_METRICS.keys()


def test_the_command_shows_the_arms(sddit_run, folder):
    said = sddit_run("table", folder)
    assert said.status == 0
    assert "1.53 ± 1.1" in said.stdout
    assert len(said.stdout.splitlines()) == 4


def test_the_command_in_latex(sddit_run, folder):
    lines = sddit_run("table", folder, "--latex").stdout.splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrrrrrr}"
    assert lines[1] == r"\toprule"
    assert lines[3] == r"\midrule"
    assert lines[-1] == r"\end{tabular}"
    assert r"difference (95\%)" in lines[2]
    assert r"1.53 $\pm$ 1.1" in lines[5]
    assert all(line.count(" & ") == 10 and line.endswith(r" \\") for line in lines[4:7])


def test_the_command_in_markdown_and_csv(sddit_run, folder):
    markdown = sddit_run("table", folder, "--markdown").stdout.splitlines()
    assert markdown[1] == "| " + " | ".join(["---"] * 11) + " |"
    csv = sddit_run("table", folder, "--csv").stdout.splitlines()
    assert csv[0].startswith("arm,changes,baseline,runs,finished,failed,steps")
    assert len(csv) == 4


def test_an_ablation_is_shown_alone(sddit_run, folder, tmp_path):
    said = sddit_run("table", folder, tmp_path)
    assert said.status == 2
    assert "pass it as the only folder" in said.stderr


def test_its_runs_are_shown_as_runs_too(sddit_run, folder, tmp_path):
    for path in folder.parent.glob("abl-better-*"):
        (path / "recipe.resolved.json").write_text('{"train": {"steps": 4}}', encoding="utf-8")
    assert len(sddit_run("table", tmp_path / "runs", "--csv").stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("mean", "spread", "words"),
    [
        (0.3123, 0.0214, "0.312 ± 0.021"),
        (691.7, 104.4, "692 ± 104"),
        (12_345.6, 99.7, "12346 ± 100"),
        (12_345.6, 100.2, "12346 ± 100"),
        (3.4e9, 2.1e8, "3.4e+09 ± 2.1e+08"),
        (5.0, None, "5"),
    ],
)
def test_a_mean_is_written_with_the_digits_that_count(mean, spread, words):
    assert format_summary(Summary(3, mean, spread, None, None)) == words
