"""The verbs, on toys."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sddit.cli.commands.explain import EXITS
from sddit.cli.common import setting_text
from sddit.errors import catalogue
from sddit.testing import TOY_PAIR_RECIPE

# ------------------------------------------------------------------------------------------------------------- plugins


def test_plugins_are_listed_with_origin_and_what_they_add(sddit_run, toys, distribution, loss_source):
    said = sddit_run("plugins")
    assert said.status == 0
    assert re.search(r"^sddit +sddit +optimizers: adamw +loaded", said.out, re.MULTILINE)
    assert "tensorboard" in said.out


def test_third_party_plugins_show_what_they_add_after_load(sddit_process, distribution, loss_source, tmp_path):
    distribution("acme-dist", "acme", f"print('imported!')\n{loss_source}", "2.5")
    distribution("bad-dist", "bad", "1 / 0")
    path = f"import sys; sys.path[:0] = [{str(tmp_path / 'site_acme-dist')!r}, {str(tmp_path / 'site_bad-dist')!r}]"
    said = sddit_process("plugins", before=path)
    assert re.search(r"^acme +acme-dist 2.5 +not loaded", said.out, re.MULTILINE)
    assert "imported!" not in said.out + said.err
    loaded = sddit_process("plugins", "--load", before=path)
    assert re.search(r"^acme +acme-dist 2.5 +losses: mine +loaded", loaded.out, re.MULTILINE)
    assert "bad: ZeroDivisionError: division by zero" in loaded.err
    assert loaded.status == 0
    records = {row["name"]: row for row in json.loads(sddit_process("plugins", "--load", "--json", before=path).out)}
    assert records["acme"]["registers"] == {"losses": ["mine"]}
    assert (records["bad"]["state"], records["bad"]["error"]) == ("failed", "ZeroDivisionError: division by zero")
    assert records["sddit"]["builtin"]


# ---------------------------------------------------------------------------------------------------------------- show


def test_show_lists_kinds_with_the_words_of_their_hooks(sddit_run, toys):
    said = sddit_run("show")
    assert "Add loss terms; a recipe uses one as `[loss.<label>]" in said.out
    assert "toy, toy_agreement" in said.out
    assert json.loads(sddit_run("show", "--json").out)["losses"]["hook"] == "register_losses"


def test_show_lists_components_by_kind_and_by_table(sddit_run, toys):
    assert sddit_run("show", "losses").out == sddit_run("show", "loss").out
    assert "Student tokens against the teacher's." in sddit_run("show", "losses").out


def test_show_prints_type_default_bounds_and_meaning(sddit_run, toys):
    said = sddit_run("show", "optimizers", "adamw")
    assert "arXiv:1711.05101" in said.out
    assert re.search(
        r"^betas +\[number, at least 0, below 1, number, at least 0, below 1\] +\(default \[0.9, 0.999\]\)",
        said.out,
        re.MULTILINE,
    )
    assert "    Added to the root of the second average." in said.out
    entries = {
        entry["key"]: entry for entry in json.loads(sddit_run("show", "optimizers", "adamw", "--json").out)["settings"]
    }
    assert entries["eps"] == {
        "key": "eps", "type": "number, above 0", "required": False, "default": 1e-8,
        "description": "Added to the root of the second average.",
    }  # fmt: skip
    schema = json.loads(sddit_run("show", "optimizers", "adamw", "--schema").out)
    assert schema["additionalProperties"] is False


def test_show_prints_the_core_tables(sddit_run, toys):
    assert re.search(r"^save_every +whole number, at least 1", sddit_run("show", "train").out, re.MULTILINE)


def test_show_loads_a_plugin_that_is_named(sddit_run, toys, tmp_path, loss_source):
    (tmp_path / "mine.py").write_text(loss_source, encoding="utf-8")
    said = sddit_run("show", "losses", "mine", "--plugin", "./mine.py")
    assert said.status == 0
    assert "scale   number, above 0   (default 1.0)" in said.out
    assert "A factor." in said.out


@pytest.mark.parametrize(
    ("words", "code", "nearest"),
    [
        (["loses"], "SD-R111", "'losses'"),
        (["losses", "toi"], "SD-R110", "'toy'"),
        (["losses", "acme/x"], "SD-P205", ""),
    ],
)
def test_show_refuses_what_is_not_there(sddit_run, toys, words, code, nearest):
    said = sddit_run("show", *words)
    assert code in said.err
    assert nearest in said.err


def test_a_component_shown_without_its_kind_is_found(sddit_run, toys):
    assert "sddit-run show losses toy_agreement" in sddit_run("show", "toy_agreement").err


def test_defaults_are_shown_as_a_recipe_writes_them():
    assert [setting_text(value) for value in (None, True, "a", 1.0, 1, [0.5, 2], {"start": 0.1}, {})] == [
        "not set", "true", '"a"', "1.0", "1", "[0.5, 2]", "{ start = 0.1 }", "{}",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- explain


def test_every_code_has_a_page(sddit_run):
    for code, page in catalogue().items():
        said = sddit_run("explain", code)
        assert page["title"] in said.out
        assert f"Exit status {page['exit']}: {EXITS[page['exit']]}." in said.out


def test_a_code_may_be_written_short(sddit_run):
    assert sddit_run("explain", "p201").out == sddit_run("explain", "SD-P201").out
    assert "SD-P201" in sddit_run("explain").out
    assert list(json.loads(sddit_run("explain", "p201", "--json").out)) == ["SD-P201"]
    assert "SD-R171" in sddit_run("explain", "SD-Z999").err


# ---------------------------------------------------------------------------------------------------------- new-plugin


def test_new_plugins_pass_their_own_tests(sddit_run, tmp_path):
    assert sddit_run("new-plugin", "my_loss").status == 0
    assert sddit_run("new-plugin", "my_steps", "--kind", "sampler").status == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "test_my_loss.py", "test_my_steps.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_a_new_loss_trains(sddit_run, toy_recipe):
    sddit_run("new-plugin", "my_loss", "--out", toy_recipe.parent)
    toy_recipe.write_text('plugins = ["./my_loss.py"]\n' + toy_recipe.read_text(encoding="utf-8"), encoding="utf-8")
    said = sddit_run(toy_recipe, "loss.mine.name=my_loss", "loss.mine.bend=0.5", "--json")
    assert said.status == 0, said.err
    log = Path(json.loads(said.out)["folder"], "metrics.jsonl").read_text(encoding="utf-8")
    assert "loss/mine" in json.loads(log.splitlines()[-1])


def test_a_new_package_is_a_plugin_once_installed(sddit_run, tmp_path):
    said = sddit_run("new-plugin", "my_loss", "--package")
    assert [line.split()[1] for line in said.out.splitlines()[:4]] == [
        "my_loss/pyproject.toml", "my_loss/README.md", "my_loss/src/my_loss/__init__.py", "my_loss/tests/test_my_loss.py",
    ]  # fmt: skip
    project = (tmp_path / "my_loss" / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.sddit]\nmy_loss = "my_loss"' in project
    assert "./my_loss.py" not in (tmp_path / "my_loss" / "src" / "my_loss" / "__init__.py").read_text(encoding="utf-8")


def test_the_next_step_is_the_test_of_the_plugin(sddit_run):
    assert sddit_run("new-plugin", "my_test_loss").out.splitlines()[-1] == "next:  pytest test_my_test_loss.py"
    assert sddit_run("new-plugin", "my_loss", "--package").out.splitlines()[-2:] == [
        "next:  pip install -e my_loss", "       pytest my_loss/tests/test_my_loss.py",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("lambda", "a reserved word of Python"),
        ("json", "standard library"),
        ("numpy", "an installed module"),
        ("sddit", "built-in"),
    ],
)
def test_a_name_that_something_else_has_is_refused(sddit_run, name, why):
    said = sddit_run("new-plugin", name)
    assert (said.status, "SD-R172" in said.err, why in said.err) == (2, True, True)
    assert f"sddit-run new-plugin {name}_loss" in said.err


def test_nothing_is_overwritten(sddit_run, tmp_path):
    (tmp_path / "test_my_loss.py").write_text("mine", encoding="utf-8")
    said = sddit_run("new-plugin", "my_loss")
    assert (said.status, "SD-R173" in said.err) == (2, True)
    assert not (tmp_path / "my_loss.py").exists(), "all files or none"
    assert (tmp_path / "test_my_loss.py").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["My-Loss", "2fast", "class", "../x", ""])
def test_a_name_that_no_module_can_have_is_refused(sddit_run, name):
    assert "SD-R172" in sddit_run("new-plugin", name).err


# -------------------------------------------------------------------------------------------- a run and what follows it


@pytest.fixture
def trained(sddit_run, toy_recipe):
    """The folder of a run of toys with a teacher, by the command."""
    toy_recipe.write_text(TOY_PAIR_RECIPE, encoding="utf-8")
    said = sddit_run(toy_recipe, "--json")
    assert said.status == 0, said.err
    return json.loads(said.out)["folder"]


def test_a_run_reports_and_a_second_one_has_nothing_to_do(sddit_run, trained, toy_recipe):
    said = sddit_run(toy_recipe)
    assert said.status == 0
    assert "already finished" in said.out
    assert f"report: {trained}" in said.out.replace("report: runs", f"report: {trained.rpartition('/')[0]}")


def test_the_plan_names_every_value_its_origin_and_the_cost(sddit_run, toy_recipe, tmp_path):
    said = sddit_run("-n", toy_recipe, "train.steps=7", "--all")
    assert said.status == 0
    assert re.search(r"^steps +7 +command line", said.out, re.MULTILINE)
    assert re.search(r"^lr +0.001 +\S*toy.toml:\d+", said.out, re.MULTILINE)
    assert re.search(r"^hidden +16 +default", said.out, re.MULTILINE)
    assert re.search(r"^  parameters +2.93 k", said.out, re.MULTILINE)
    assert "7 steps of" in said.out
    assert not (tmp_path / "runs").exists()
    planned = json.loads(sddit_run("-n", toy_recipe, "--json").out)
    assert planned["backbone_parameters"] == 2928
    assert planned["recipe"]["optimizer"]["lr"] == 0.001
    assert planned["origins"]["train.steps"] != "default"
    assert planned["warnings"] == []


def test_a_plan_shows_cost_views_losses_and_changes_on_one_screen(sddit_run, toy_recipe, trained):
    child = toy_recipe.with_name("child.toml")
    child.write_text('extends = "toy.toml"\nloss.agree.weight = 0.25\n[train]\nsteps = 9\n', encoding="utf-8")
    plan = sddit_run("-n", child, "seed=3")
    assert plan.status == 0, plan.err
    assert len(plan.out.splitlines()) <= 40
    lines = [" ".join(line.split()) for line in plan.out.splitlines()]
    assert "Changes from recipes_of_test/toy.toml" in lines
    assert "seed 0 (default) -> 3 command line" in lines
    assert "train.steps 4 -> 9" in lines
    assert any(re.fullmatch(r"loss.agree.weight 0.5 -> 0.25", line) for line in lines)
    assert any(re.fullmatch(r"student student .+ denoise, agree", line) for line in lines)
    assert any(re.fullmatch(r"teacher teacher .+ agree", line) for line in lines)
    assert any(re.fullmatch(r"agree \S+/toy_agreement 0.25 student, teacher", line) for line in lines)
    assert any(line.startswith("time unknown") for line in lines)
    planned = sddit_run("-n", toy_recipe)
    assert "at the pace of the first 4 steps" in planned.out, "its own run has been trained"


def test_the_changes_of_a_resolved_recipe_are_those_of_the_command_line(sddit_run, trained):
    plan = sddit_run("-n", Path(trained) / "recipe.resolved.json", "train.steps=9")
    changes = plan.out.partition("Changes from")[2].splitlines()[1:]
    assert [" ".join(line.split()) for line in changes] == ["train.steps 4 -> 9 command line"]


def test_sample_draws_the_same_pictures_again(sddit_run, trained):
    words = ["sample", trained, "--classes", "0,class 2", "--per-class", "2", "--seeds", "3-4", "--steps", "3"]
    first, second = sddit_run(*words), sddit_run(*words)
    assert first.status == 0, first.err
    files = [re.findall(r"\S+\.npz", said.out)[0] for said in (first, second)]
    assert files[0] != files[1], "nothing is overwritten"
    one, two = (np.load(file) for file in files)
    assert one["arr_0"].shape == (8, 8, 8, 3)
    assert one["arr_1"].tolist() == [0] * 4 + [2] * 4
    assert np.array_equal(one["arr_0"], two["arr_0"])
    other = np.load(re.findall(r"\S+\.npz", sddit_run(*words[:-4], "--seeds", "5-6").out)[0])
    assert not np.array_equal(one["arr_0"], other["arr_0"])
    with Image.open(files[0].replace(".npz", ".png")) as picture:
        assert picture.width > picture.height / 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--classes", "7"], "SD-T904"), (["--classes", "dog"], "SD-T921"), (["--seeds", "1;2"], "SD-T921"),
        (["--classes", "2-0"], "SD-T911"), (["--seeds", "7-3"], "SD-T911"), (["--seeds", "0-999999999"], "SD-T911"),
        (["--classes", "0-999999999"], "SD-T904"), (["--seeds", ""], "SD-T921"),
        (["--sampler", "toi"], "SD-R110"), (["--weights", "ema"], "SD-C446"), (["--guidance", "2"], "SD-T923"),
    ],
)  # fmt: skip
def test_sample_refuses_what_is_not_there(sddit_run, trained, words, code):
    said = sddit_run("sample", trained, *words)
    assert said.status > 1
    assert code in said.err


def test_a_file_in_the_place_of_a_folder_is_told_before_anything_is_drawn(sddit_run, trained, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        said = sddit_run("sample", trained, "--out", out)
        assert (said.status, "SD-F705" in said.err) == (8, True)
    for words in (["--out", "file"], ["--out", "file/below", "--package"]):
        said = sddit_run("new-plugin", "my_loss", *words)
        assert (said.status, "SD-F705" in said.err) == (8, True)


@pytest.mark.parametrize("damage", ["model", "label"])
def test_weights_of_another_model_are_refused(sddit_run, toy_recipe, damage):
    recipe = toy_recipe.read_text(encoding="utf-8")
    folder = Path(json.loads(sddit_run(toy_recipe, "--json").out)["folder"])
    assert sddit_run("sample", folder).status == 0, recipe
    resolved = json.loads((folder / "recipe.resolved.json").read_text(encoding="utf-8"))
    if damage == "model":
        resolved["backbone"]["hidden"] *= 2
    else:
        resolved["ema"]["other"] = {"decay": 0.9}
    (folder / "recipe.resolved.json").write_text(json.dumps(resolved), encoding="utf-8")
    (folder / "recipe.resolved.json.sha256").unlink()
    said = sddit_run("sample", folder, *(["--weights", "other"] if damage == "label" else []))
    assert said.status == 5
    assert f"SD-C410: the checkpoint does not fit this recipe\n  where:  {folder / 'checkpoints'}" in said.err
    assert len(said.err.splitlines()) <= 8


def test_evaluate_says_before_it_samples_that_there_is_nothing_to_score(sddit_run, trained, monkeypatch):
    monkeypatch.setattr("sddit.runs.pipeline.evaluate_run", lambda *_, **__: pytest.fail("sampled"))
    said = sddit_run("evaluate", trained, "--json")
    assert (said.status, json.loads(said.out)) == (0, {})
    assert "names no extractor" in said.err


def test_evaluate_prints_scores(sddit_run, toy_recipe):
    run = json.loads(sddit_run(toy_recipe, 'evaluate.features=["toy"]', "evaluate.samples=24", "--json").out)["folder"]
    said = sddit_run("evaluate", run)
    assert said.status == 0, said.err
    assert re.search(r"^Frechet distance +[\d.e+-]+ +[\d.e+-]+", said.out, re.MULTILINE)
    scores = json.loads(sddit_run("evaluate", run, "--json").out)
    [one] = scores.values()
    assert one["n"] < one["samples"] == 24
    assert re.search(rf"^Frechet distance, all 24 samples +{one['fd_all']:.4g} *$", said.out, re.MULTILINE)
    assert one["title"] == "channel moments"


def test_evaluate_probes_and_looks_for_copies(sddit_run, toy_recipe):
    run = Path(json.loads(sddit_run(toy_recipe, "dataset.images=90", "--json").out)["folder"])
    said = sddit_run("evaluate", run, "--probe", "--copies")
    assert said.status == 0, said.err
    assert re.search(r"^linear probe of student, 30 held-out images \(chance 0\.333", said.out, re.MULTILINE)
    assert re.search(r"^2 +0\.\d{3} \(0\.\d{3}\)", said.out, re.MULTILINE)
    assert re.search(r"^pixels +[\d.]+ +0\.0\d+ +\S+copies-pixels\.png *$", said.out, re.MULTILINE)
    found = json.loads(sddit_run("evaluate", run, "--probe", "--json").out)
    assert found == {"probe": json.loads((run / "probe.json").read_text(encoding="utf-8"))}
    assert json.loads(sddit_run("evaluate", run, "--copies", "--json").out)["copies"]["pixels"]["title"] == "pixels"


MODE_PLUGIN = """
from sddit import hookimpl
from sddit.interfaces import EvaluateMode, FeatureParams, ModeOption

def count_files(folder, *, device, progress, first_file, second_file):
    return {"files": len({first_file, second_file}), "seed": None, "device": device, "run": folder.name}

class MineParams(FeatureParams):
    @classmethod
    def evaluate_modes(cls):
        options = ModeOption("first_file", "FILE", "A file to count."), ModeOption("NAME", "FILE", "Another file.")
        rows = {"files": "files counted", "seed": "not measured"}
        return (EvaluateMode("count", options, FUNCTION, "counted on {device}", rows),)

@hookimpl
def register_features(registry):
    registry.add("mine", "nowhere:Mine", params=MineParams, summary="Counts files.")
"""


@pytest.fixture
def counting(tmp_path) -> Callable[..., str]:
    """`counting()` is a plugin whose extractor offers the mode `count`; `counting(name)` names its second option."""

    def write(name: str = "second_file") -> str:
        source = MODE_PLUGIN.replace('"NAME"', f'"{name}"').replace("FUNCTION", "__name__ + ':count_files'")
        (tmp_path / "counting.py").write_text(source, encoding="utf-8")
        return "./counting.py"

    return write


def test_evaluate_runs_the_mode_of_a_third_party_extractor(sddit_run, trained, counting):
    files = ("--first-file", "a", "--second-file", "b")
    said = sddit_run("evaluate", trained, "--plugin", counting(), *files)
    assert said.status == 0, said.err
    assert re.search(r"^counted on cpu$", said.out, re.MULTILINE)
    assert re.search(r"^files counted +2 *$", said.out, re.MULTILINE)
    assert "not measured" not in said.out
    found = json.loads(sddit_run("evaluate", trained, "--plugin=./counting.py", *files, "--json").out)
    assert found == {"count": {"files": 2, "seed": None, "device": "cpu", "run": Path(trained).name}}
    alone = sddit_run("evaluate", trained, "--plugin", "./counting.py", "--first-file", "a")
    assert (alone.status, "--first-file and --second-file must be used together" in alone.err) == (2, True)
    assert "A file to count." in sddit_run("evaluate", "--plugin", "./counting.py", "--help").out


def test_evaluate_knows_no_option_of_a_plugin_that_is_not_loaded(sddit_run, trained):
    said = sddit_run("evaluate", trained, "--first-file", "a")
    assert (said.status, "--first-file" in said.err) == (2, True)


def test_evaluate_refuses_a_mode_option_that_is_taken(sddit_run, trained, counting):
    said = sddit_run("evaluate", trained, "--plugin", counting("probe"))
    assert (said.status, "SD-P202" in said.err) == (3, True)


def test_evaluate_runs_a_mode_on_every_rank_and_prints_on_one(sddit_run, trained, counting, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    printed = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        said = sddit_run("evaluate", trained, "--plugin", counting(), "--first-file", "a", "--second-file", "b")
        assert said.status == 0, said.err
        printed[rank] = said.out
    assert "files counted" in printed["0"]
    assert printed["1"] == ""


def test_table_puts_runs_side_by_side(sddit_run, toy_recipe, tmp_path, monkeypatch):
    damages = {"recipe.resolved.json": b'{"train": {}}', "scores.json": b"[1]", "metrics.jsonl": b"\xff\xfe\n"}
    for seed in (0, 1):
        sddit_run(toy_recipe, f"seed={seed}", 'evaluate.features=["toy"]', "evaluate.samples=24")
    said = sddit_run("table")
    assert said.status == 0, said.err
    assert len(re.findall(r"^toy-\w{12}  4 ", said.out, re.MULTILINE)) == 2
    assert "toy FD" in said.out
    assert "(floor " in said.out
    markdown = sddit_run("table", "--markdown").out.splitlines()
    assert markdown[1].startswith("| --- |")
    rows = list(csv.DictReader(io.StringIO(sddit_run("table", "--csv").out)))
    assert len(rows) == 2
    assert float(rows[0]["images_per_second"]) > 0
    assert any(column.endswith(".fd") for column in rows[0])
    run = sorted((tmp_path / "runs").iterdir())[0]
    monkeypatch.chdir(run)
    assert re.search(rf"^{run.name} ", sddit_run("table", ".").out, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    for name, text in damages.items():
        whole = (run / name).read_bytes()
        (run / name).write_bytes(text)
        said = sddit_run("table")
        assert said.status == 0
        assert re.search(rf"^{run.name} +unreadable", said.out, re.MULTILINE), name
        assert len(re.findall(r"^toy-\w{12}  4 ", said.out, re.MULTILINE)) == 1, "the other run is shown"
        assert f"{run.name} is unreadable" in said.err
        assert f"{run.name},unreadable," in sddit_run("table", "--csv").out
        (run / name).write_bytes(whole)
    assert "SD-T922" in sddit_run("table", tmp_path / "nothing").err


@pytest.mark.parametrize(
    "words", [("--seconds", "nan"), ("--seconds", "inf"), ("--seconds", "0"), ("--rounds", "9" * 20)]
)
def test_bench_lasts_a_bounded_time(sddit_run, words):
    said = sddit_run("bench", *words)
    assert said.status == 2
    assert f"Invalid value for '{words[0]}'" in said.err


def test_bench_compares_recipes(sddit_run, toy_recipe):
    said = sddit_run("bench", toy_recipe, toy_recipe, "--rounds", "1", "--seconds", "0.02", "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert [figure["name"] for figure in found["figures"]] == ["toy", "toy"]
    assert found["figures"][0]["relative"] == 1
    assert found["peaks"]["fp32"] > 0
