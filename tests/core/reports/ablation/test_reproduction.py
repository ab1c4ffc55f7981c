"""A rerun next to what was published: planted differences are found, faithful reruns are not called different."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sddit.ablations.analysis.results import AblationResults, gather
from sddit.reports.ablation.ablation_report import page
from sddit.reports.ablation.publish import publish
from sddit.reports.ablation.reproduction import against_published, agreement, corrected


@pytest.fixture
def rerun(finished, tmp_path):
    """`rerun({arm: figures by seed})`: the ablation next to its own publication, with other figures in the runs of some
    arms.
    """
    publish(finished, tmp_path / "results" / "toy")
    there = gather(finished)

    def made(figures=None, **plan) -> AblationResults:
        rows = [
            replace(
                row,
                id=f"{row.id}x",
                scores={"toy.fd": (figures or {}).get(row.arm, {}).get(row.seed, row.scores["toy.fd"])},
            )
            for row in there.runs
        ]
        return replace(there, plan=replace(there.plan, **{"published": "../../results/toy", **plan}), runs=tuple(rows))

    return made


def words(results):
    return {one.arm: one.word for one in against_published(results).agreements}


def test_the_same_runs_are_identical(rerun):
    found = against_published(rerun())
    assert {one.arm: (one.identical, one.compared_runs, one.word) for one in found.agreements} == dict.fromkeys(
        ("base", "shifted", "rival"), (3, 3, "identical")
    )
    assert found.not_compared == found.notes == ()
    assert found.words[0].startswith(
        "Of 3 figures (each metric of each arm) published in results/toy, 3 came out with the"
    )


def test_a_planted_difference_is_found_and_a_small_one_is_not(rerun):
    moved = {"base": {0: 1.1, 1: 2.2, 2: 2.7}, "rival": {0: 31.0, 1: 32.0, 2: 33.0}}
    results = rerun(moved)
    assert words(results) == {"base": "agrees", "shifted": "identical", "rival": "different"}
    assert "Different: rival on toy FD." in against_published(results).words
    text = page(results)
    assert "Against the published results" in text
    assert '<span class="pill bad">different</span>' in text


def test_one_last_digit_is_not_the_same_run(rerun):
    (base, *_) = against_published(rerun({"base": {1: float(np.nextafter(2.0, 3.0))}})).agreements
    assert (base.identical, base.compared_runs, base.word) == (2, 3, "agrees")


def test_runs_without_any_spread_that_differ_are_different(rerun):
    assert words(rerun({"rival": dict.fromkeys(range(3), 9.0)}))["rival"] == "different"


def test_faithful_reruns_are_seldom_called_different():
    rng, false = np.random.default_rng(0), 0
    for _ in range(200):
        sides = 2 + rng.standard_normal((3, 2, 3))  # arms, published and here, seeds
        found = corrected([agreement("arm", "toy.fd", *(dict(enumerate(side)) for side in arm)) for arm in sides])
        false += "different" in [one.word for one in found]
    assert false <= 18  # 5 % of 200, and four of its stds


def test_other_settings_are_named_and_nothing_is_compared(rerun):
    results = rerun()
    for row in results.runs:
        path = results.folder / row.folder / "recipe.resolved.json"
        recipe = json.loads(path.read_text())
        recipe["train"]["steps"] = 150
        path.write_text(json.dumps(recipe))
    found = against_published(results)
    assert found.agreements == ()
    assert found.not_compared == (("base, shifted, rival", "other settings: train.steps is 150 here, 4 there"),)
    assert "cannot be compared" not in page(rerun(published=""))
    assert "train.steps is 150 here, 4 there" in page(results)


def test_settings_that_change_no_number_do_not_matter(rerun):
    results = rerun()
    for row in results.runs:
        path = results.folder / row.folder / "recipe.resolved.json"
        recipe = json.loads(path.read_text())
        recipe["train"] |= {"log_every": 7, "threads": 3}
        path.write_text(json.dumps({**recipe, "seed": recipe["seed"] + 1}))
    assert against_published(results).not_compared == ()


def test_a_key_that_was_not_known_then_does_not_matter(rerun, tmp_path):
    results = rerun()
    (tmp_path / "results" / "toy" / "sddit-files.json").unlink()
    for path in (tmp_path / "results" / "toy" / "recipes").iterdir():
        recipe = json.loads(path.read_text())
        del recipe["evaluate"]["neighbours"]
        path.write_text(json.dumps(recipe))
    assert against_published(results).not_compared == ()
    for path in (tmp_path / "results" / "toy" / "recipes").iterdir():
        recipe = json.loads(path.read_text())
        del recipe["loss"]["agree"]
        path.write_text(json.dumps(recipe))
    assert "other settings: loss.agree is {" in against_published(results).not_compared[0][1]


def test_fewer_seeds_are_said_and_compared(rerun):
    results = rerun(seeds=[0, 1])
    found = against_published(replace(results, runs=tuple(row for row in results.runs if row.seed < 2)))
    assert [one.word for one in found.agreements] == ["identical"] * 3
    assert found.notes == ("Seeds: 0, 1 here; 0, 1, 2 there.",)
    moved = rerun({"base": {0: 5.0}}, seeds=[0, 1])
    assert (
        words(replace(moved, runs=tuple(row for row in moved.runs if row.seed < 2)))["base"]
        == "no verdict under 3 seeds"
    )


def test_other_metrics_arms_and_versions_are_said(rerun):
    results = rerun(metrics=["toy.fd", "toy.recall"])
    arms = tuple(replace(arm, label=arm.label.replace("rival", "newer")) for arm in results.plan.arms)
    rows = tuple(
        replace(row, arm=row.arm.replace("rival", "newer"), scores={**row.scores, "toy.recall": 0.5})
        for row in results.runs
    )
    results = replace(results, plan=replace(results.plan, arms=arms), runs=rows)
    for row in rows:
        (results.folder / row.folder / "environment.json").write_text(json.dumps({"packages": {"torch": "3"}}))
    found = against_published(results)
    assert dict(found.not_compared) == {
        "base, toy recall, shifted, toy recall": "not published",
        "newer": "it is not published",
    }
    assert found.notes == ("packages.torch is 3 here, 2 there, so digits may differ.",)


@pytest.mark.parametrize("name", ["", "../../nowhere"])
def test_nothing_published_is_nothing_said(rerun, name):
    assert against_published(rerun(published=name)) is None
    assert "Against the published results" not in page(rerun(published=name))


def test_a_damaged_publication_stops_nothing(rerun, tmp_path):
    results = rerun()
    (tmp_path / "results" / "toy" / "results.jsonl").write_text("{")
    [(what, why)] = against_published(results).not_compared
    assert what == "all"
    assert why.startswith("the files there cannot be read: results.jsonl is not what was written")
    assert "[SD-F713]; rerun the command that wrote it (sddit-run publish" in why
    (tmp_path / "results" / "toy" / "sddit-files.json").unlink()
    assert "not JSON: { [SD-F704]" in against_published(results).not_compared[0][1].replace(")", "")
    (tmp_path / "results" / "toy" / "results.jsonl").unlink()
    assert "SD-F704" in against_published(results).not_compared[0][1]


def test_a_publication_says_nothing_of_an_earlier_one(rerun, finished, tmp_path):
    plan = json.loads((finished / "plan.json").read_text())
    publish(finished, tmp_path / "before")
    (finished / "plan.json").write_text(json.dumps({**plan, "published": "../../results/toy"}))
    publish(finished, tmp_path / "after")
    names = [path.relative_to(tmp_path / "before") for path in (tmp_path / "before").rglob("*") if path.is_file()]
    rerun()
    assert all((tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes() for name in names)


@pytest.mark.usefixtures("pretending")
def test_the_command_compares_at_the_end(sddit_run, write, tmp_path):
    arms = '[ablation]\nseeds = [0, 1, 2]\npublished = "results/abl"\n'
    path = write(arms)
    assert "published in" not in (first := sddit_run(path, "--jobs", 3)).stdout
    assert first.status == 0
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if (path / "plan.json").is_file())
    assert sddit_run("publish", folder, "--out", "results/abl").status == 0
    said = sddit_run(path)
    assert (
        "Of 1 figure (each metric of each arm) published in results/abl, 1 came out with the same digits" in said.stdout
    )
    said = sddit_run(path, "train.steps=3", "--jobs", 3)
    assert said.status == 0
    assert "not compared: base: other settings: train.steps is 3 here, 4 there" in said.stdout
    assert "1 ± 1" not in sddit_run("table", "results/abl").stdout
    assert "2 ± 1" in sddit_run("table", "results/abl").stdout
