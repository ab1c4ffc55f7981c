"""Test the commands on toy components."""

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

from sddit import generation
from sddit.cli.commands.explain import EXITS
from sddit.cli.output import setting_text
from sddit.errors import catalogue
from sddit.storage.lock import only_writer
from sddit.storage.sample_parts import SampleParts
from sddit.testing import TOY_PAIR_RECIPE


def test_plugins_lists_origin_and_components(sddit_run, toys, distribution, loss_source):
    said = sddit_run("plugins")
    assert said.status == 0
    assert re.search(r"^sddit +\(added\) +datasets: declared +loaded", said.stdout, re.MULTILINE)
    assert {"losses: toy, toy_agreement", "optimizers: toy"} <= {
        " ".join(line.split()) for line in said.stdout.splitlines()
    }


def test_plugins_load_lists_components_of_third_party_plugins(sddit_process, distribution, loss_source, tmp_path):
    distribution("acme-dist", "acme", f"print('imported!')\n{loss_source}", "2.5")
    distribution("bad-dist", "bad", "1 / 0")
    distribution("sddit", "standard", loss_source)
    sites = [str(tmp_path / f"site_{name}") for name in ("acme-dist", "bad-dist", "sddit")]
    path = f"import sys; sys.path[:0] = {sites!r}"
    said = sddit_process("plugins", before=path)
    assert re.search(r"^acme +acme-dist 2.5 +not loaded", said.stdout, re.MULTILINE)
    assert "imported!" not in said.stdout + said.stderr
    loaded = sddit_process("plugins", "--load", before=path)
    assert re.search(r"^acme +acme-dist 2.5 +losses: mine +loaded", loaded.stdout, re.MULTILINE)
    assert "bad: ZeroDivisionError: division by zero" in loaded.stderr
    assert loaded.status == 0
    records = {row["name"]: row for row in json.loads(sddit_process("plugins", "--load", "--json", before=path).stdout)}
    assert records["acme"]["registers"] == {"losses": ["mine"]}
    assert (records["bad"]["state"], records["bad"]["error"]) == ("failed", "ZeroDivisionError: division by zero")
    assert records["standard"]["builtin"]


def test_show_lists_kinds_with_the_text_of_their_hooks(sddit_run, toys):
    result = sddit_run("show")
    assert "Add losses; a recipe uses one as `[loss.<label>]" in result.stdout
    assert "toy, toy_agreement" in result.stdout
    assert json.loads(sddit_run("show", "--json").stdout)["losses"]["hook"] == "register_losses"


def test_show_lists_components_by_kind_and_by_table(sddit_run, toys):
    assert sddit_run("show", "losses").stdout == sddit_run("show", "loss").stdout
    assert "Student tokens against the teacher's." in sddit_run("show", "losses").stdout


def test_show_prints_the_core_tables(sddit_run, toys):
    assert re.search(r"^save_every +whole number, at least 1", sddit_run("show", "train").stdout, re.MULTILINE)


def test_show_loads_the_plugin_of_its_option(sddit_run, toys, tmp_path, loss_source):
    (tmp_path / "mine.py").write_text(loss_source, encoding="utf-8")
    result = sddit_run("show", "losses", "mine", "--plugin", "./mine.py")
    assert result.status == 0
    assert "scale   number, above 0   (default 1.0)" in result.stdout
    assert "A factor." in result.stdout


def test_show_loads_a_plugin_file_of_another_folder(sddit_run, toys, tmp_path, loss_source):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(loss_source, encoding="utf-8")
    assert sddit_run("show", "losses", "mine", "--plugin", tmp_path / "other" / "mine.py").status == 0
    missing = sddit_run("show", "losses", "mine", "--plugin", tmp_path / "another" / "mine.py")
    assert (missing.status, "SD-P207" in missing.stderr) == (3, True)


@pytest.mark.parametrize(
    ("words", "code", "nearest"),
    [
        (["loses"], "SD-R111", "'losses'"),
        (["losses", "toi"], "SD-R110", "'toy'"),
        (["losses", "acme/x"], "SD-P205", ""),
    ],
)
def test_show_refuses_unknown_kinds_and_names(sddit_run, toys, words, code, nearest):
    result = sddit_run("show", *words)
    assert code in result.stderr
    assert nearest in result.stderr


def test_show_suggests_the_kind_of_a_component(sddit_run, toys):
    assert "sddit-run show losses toy_agreement" in sddit_run("show", "toy_agreement").stderr


def test_values_are_printed_as_a_recipe_writes_them():
    assert [setting_text(value) for value in (None, True, "a", 1.0, 1, [0.5, 2], {"start": 0.1}, {})] == [
        "not set", "true", '"a"', "1.0", "1", "[0.5, 2]", "{ start = 0.1 }", "{}",
    ]  # fmt: skip


def test_explain_prints_every_code(sddit_run):
    for code, page in catalogue().items():
        result = sddit_run("explain", code)
        assert page["title"] in result.stdout
        assert f"Exit status {page['exit']}: {EXITS[page['exit']]}." in result.stdout


def test_explain_accepts_short_codes(sddit_run):
    assert sddit_run("explain", "p201").stdout == sddit_run("explain", "SD-P201").stdout
    assert "SD-P201" in sddit_run("explain").stdout
    assert list(json.loads(sddit_run("explain", "p201", "--json").stdout)) == ["SD-P201"]
    for code in ("201", "sdp201", "SD-201", "sd-p201", "P-201"):
        assert sddit_run("explain", code).stdout == sddit_run("explain", "SD-P201").stdout
    for code in ("SD-Z999", "999", "20", "c201"):
        assert "SD-R171" in sddit_run("explain", code).stderr


def test_new_plugins_pass_their_own_tests(sddit_run, tmp_path):
    kinds = {"my_loss": "loss", "my_steps": "sampler", "my_codec": "codec"}
    for name, kind in kinds.items():
        assert sddit_run("new-plugin", name, "--kind", kind).status == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *(f"test_{name}.py" for name in kinds)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_a_new_loss_trains(sddit_run, toy_recipe):
    sddit_run("new-plugin", "my_loss", "--out", toy_recipe.parent)
    toy_recipe.write_text('plugins = ["./my_loss.py"]\n' + toy_recipe.read_text(encoding="utf-8"), encoding="utf-8")
    result = sddit_run(toy_recipe, "loss.mine.name=my_loss", "loss.mine.bend=0.5", "--json")
    assert result.status == 0, result.stderr
    log = Path(json.loads(result.stdout)["folder"], "metrics.jsonl").read_text(encoding="utf-8")
    assert "loss/mine" in json.loads(log.splitlines()[-1])


def test_a_new_package_is_a_plugin_once_installed(sddit_run, tmp_path):
    result = sddit_run("new-plugin", "my_loss", "--package")
    assert [line.split()[1] for line in result.stdout.splitlines()[:4]] == [
        "my_loss/pyproject.toml", "my_loss/README.md", "my_loss/src/my_loss/__init__.py",
        "my_loss/tests/test_my_loss.py",
    ]  # fmt: skip
    project = (tmp_path / "my_loss" / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.sddit]\nmy_loss = "my_loss"' in project
    assert "./my_loss.py" not in (tmp_path / "my_loss" / "src" / "my_loss" / "__init__.py").read_text(encoding="utf-8")


def test_new_plugin_prints_the_check_as_the_next_step(sddit_run):
    assert sddit_run("new-plugin", "my_test_loss").stdout.splitlines()[-1] == "next:  sddit-run check my_test_loss.py"
    assert sddit_run("new-plugin", "my_loss", "--package").stdout.splitlines()[-2:] == [
        "next:  pip install -e my_loss", "       sddit-run check my_loss",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("lambda", "a reserved word of Python"),
        ("json", "standard library"),
        ("numpy", "an installed module"),
        ("sddit", "built-in"),
        ("conftest", "pytest"),
    ],
)
def test_new_plugin_refuses_names_in_use(sddit_run, name, why):
    result = sddit_run("new-plugin", name)
    assert (result.status, "SD-R172" in result.stderr, why in result.stderr) == (2, True, True)
    assert f"sddit-run new-plugin {name}_loss" in result.stderr


def test_new_plugin_refuses_the_name_of_a_component_of_its_kind(sddit_run, toys):
    result = sddit_run("new-plugin", "toy_agreement")
    assert (result.status, "the name of a loss of the plugin toy," in result.stderr) == (2, True), result.stderr
    assert "sddit-run new-plugin toy_agreement_loss" in result.stderr
    assert sddit_run("new-plugin", "toy_agreement", "--kind", "sampler").status == 0


def test_new_plugin_overwrites_nothing(sddit_run, tmp_path):
    (tmp_path / "test_my_loss.py").write_text("mine", encoding="utf-8")
    result = sddit_run("new-plugin", "my_loss")
    assert (result.status, "SD-R173" in result.stderr) == (2, True)
    assert not (tmp_path / "my_loss.py").exists(), "all files or none"
    assert (tmp_path / "test_my_loss.py").read_text(encoding="utf-8") == "mine"


def test_an_interrupted_new_plugin_is_completed(sddit_run, tmp_path):
    for words in (["my_loss"], ["my_loss", "--package"]):
        written = [tmp_path / line.split()[1] for line in sddit_run("new-plugin", *words).stdout.splitlines()[:2]]
        written[1].unlink()
        assert sddit_run("new-plugin", *words).status == 0
        assert all(path.is_file() for path in written)
        assert sddit_run("new-plugin", *words).status == 2, "all of it is there"
        written[1].unlink()
        written[0].write_text("mine")
        assert sddit_run("new-plugin", *words).status == 2
        assert written[0].read_text() == "mine"


def test_new_plugin_follows_no_links(sddit_run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "my_loss.py").symlink_to(elsewhere / "gone.py")
    (tmp_path / "my_other").symlink_to(elsewhere)
    for words in (["my_loss"], ["my_other", "--package"]):
        result = sddit_run("new-plugin", *words)
        assert (result.status, "SD-R173" in result.stderr) == (2, True)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["My-Loss", "2fast", "class", "../x", ""])
def test_new_plugin_refuses_invalid_module_names(sddit_run, name):
    assert "SD-R172" in sddit_run("new-plugin", name).stderr


@pytest.fixture
def trained(sddit_run, toy_recipe):
    """Train toys with a teacher by the command, and return the run folder."""
    toy_recipe.write_text(TOY_PAIR_RECIPE, encoding="utf-8")
    result = sddit_run(toy_recipe, "--json")
    assert result.status == 0, result.stderr
    return json.loads(result.stdout)["folder"]


def test_second_run_has_nothing_to_do(sddit_run, trained, toy_recipe):
    result = sddit_run(toy_recipe)
    assert result.status == 0
    assert "already finished" in result.stdout
    assert f"report: {trained}" in result.stdout.replace("report: runs", f"report: {trained.rpartition('/')[0]}")


def test_dry_run_all_lists_values_origins_and_cost(sddit_run, toy_recipe, tmp_path):
    result = sddit_run("-n", toy_recipe, "train.steps=7", "--all")
    assert result.status == 0
    assert re.search(r"^steps +7 +command line", result.stdout, re.MULTILINE)
    assert re.search(r"^lr +0.001 +\S*toy.toml:\d+", result.stdout, re.MULTILINE)
    assert re.search(r"^hidden +16 +default", result.stdout, re.MULTILINE)
    assert re.search(r"^  parameters +2.93 k", result.stdout, re.MULTILINE)
    assert "7 steps of" in result.stdout
    assert not (tmp_path / "runs").exists()
    planned = json.loads(sddit_run("-n", toy_recipe, "--json").stdout)
    assert planned["backbone_parameters"] == 2928
    assert planned["recipe"]["optimizer"]["lr"] == 0.001
    assert planned["origins"]["train.steps"] != "default"
    assert planned["warnings"] == []


def test_dry_run_shows_cost_views_losses_and_changes_on_one_screen(sddit_run, toy_recipe, trained):
    child = toy_recipe.with_name("child.toml")
    child.write_text('extends = "toy.toml"\nloss.agree.weight = 0.25\n[train]\nsteps = 9\n', encoding="utf-8")
    plan = sddit_run("-n", child, "seed=3")
    assert plan.status == 0, plan.stderr
    assert len(plan.stdout.splitlines()) <= 40
    lines = [" ".join(line.split()) for line in plan.stdout.splitlines()]
    assert "Changes from recipes_of_test/toy.toml" in lines
    assert "seed 0 (default) -> 3 (command line)" in lines
    assert "train.steps 4 -> 9" in lines
    assert any(re.fullmatch(r"loss.agree.weight 0.5 -> 0.25", line) for line in lines)
    assert any(re.fullmatch(r"student student .+ denoise, agree", line) for line in lines)
    assert any(re.fullmatch(r"teacher teacher .+ agree", line) for line in lines)
    assert any(
        re.fullmatch(r"agree \S+/toy_agreement 0.25 student at encoder, teacher at encoder", line) for line in lines
    )
    assert any(line.startswith("time unknown") for line in lines)
    planned = sddit_run("-n", toy_recipe)
    assert "at the pace of the first 4 steps" in planned.stdout, "its own run has been trained"


def test_the_summary_of_changes_leaves_out_what_a_recipe_states_about_itself(sddit_run, toy_recipe):
    child = toy_recipe.with_name("named.toml")
    child.write_text('extends = "toy.toml"\ntrain.steps = 9\n[about]\nmethod = "Mine"\n', encoding="utf-8")
    plan = sddit_run("-n", child).stdout
    assert "method: Mine" in plan
    changes = plan.partition("Changes from ")[2].splitlines()
    assert [" ".join(line.split()) for line in changes[1:]] == ["train.steps 4 -> 9"]


def test_changes_of_a_resolved_recipe_are_those_of_the_command_line(sddit_run, trained):
    plan = sddit_run("-n", Path(trained) / "recipe.resolved.json", "train.steps=9")
    changes = plan.stdout.partition("Changes from")[2].splitlines()[1:]
    assert [" ".join(line.split()) for line in changes] == ["train.steps 4 -> 9 (command line)"]


def test_changes_of_a_recipe_without_a_base_are_those_of_the_command_line_or_from_the_defaults(sddit_run, toy_recipe):
    changes = sddit_run("-n", toy_recipe, "train.steps=9").stdout.partition("Changes from ")[2].splitlines()
    assert [" ".join(line.split()) for line in changes[1:]] == ["train.steps 4 -> 9 (command line)"]
    assert changes[0].endswith("toy.toml")
    changes = sddit_run("-n", toy_recipe).stdout.partition("Changes from ")[2].splitlines()
    assert changes[0] == "the defaults"
    assert "train.steps 1000 (default) -> 4" in [" ".join(line.split()) for line in changes]


def test_sample_gives_the_same_images_again(sddit_run, trained):
    words = ["sample", trained, "--classes", "0,class 2", "--per-class", "2", "--seeds", "3-4", "--steps", "3"]
    first, second = sddit_run(*words), sddit_run(*words)
    assert first.status == 0, first.stderr
    files = [re.findall(r"\S+\.npz", result.stdout)[0] for result in (first, second)]
    assert files[0] != files[1], "nothing is overwritten"
    one, two = (np.load(file) for file in files)
    assert one["arr_0"].shape == (8, 8, 8, 3)
    assert one["arr_1"].tolist() == [0, 0, 2, 2] * 2
    assert one["seeds"].tolist() == [3] * 4 + [4] * 4
    assert np.array_equal(one["arr_0"], two["arr_0"])
    other = np.load(re.findall(r"\S+\.npz", sddit_run(*words[:-4], "--seeds", "5-6").stdout)[0])
    assert not np.array_equal(one["arr_0"], other["arr_0"])
    with Image.open(files[0].replace(".npz", ".png")) as image:
        assert image.width > image.height / 2


def test_sample_continues_after_a_kill(sddit_run, trained, monkeypatch):
    words = ["sample", trained, "--classes", "0,2", "--per-class", "3", "--seeds", "3-4"]
    whole = Path(re.findall(r"\S+\.npz", sddit_run(*words).stdout)[0])
    monkeypatch.setattr("sddit.generation.PART_BYTES", 1)  # parts of one batch
    append, generate, generated = SampleParts.append, generation.generate, []

    def killed(parts, tensors):
        if parts.count == 6:
            raise KeyboardInterrupt
        append(parts, tensors)

    def counted(backbone, schedule, recipe, request, *more):
        generated.extend(request.ids)
        return generate(backbone, schedule, recipe, request, *more)

    with monkeypatch.context() as patch:
        patch.setattr(SampleParts, "append", killed)
        assert sddit_run(*words).status == 130
    samples = Path(trained) / "samples"
    assert [path.name for path in samples.glob("drawn-2*")] == ["drawn-2.parts"]
    monkeypatch.setattr("sddit.generation.generate", counted)
    other = sddit_run(*words[:-1], "5")
    assert "drawn-3.npz" in other.stdout
    assert len(generated) == 6, "another request continues nothing"
    with only_writer(samples / "drawn-2.parts"):
        assert "drawn-4.npz" in sddit_run(*words).stdout, "another process continues those samples"
    generated.clear()
    assert "drawn-2.npz" in sddit_run(*words).stdout
    assert len(generated) == 6, "the images of the first seed are kept"
    assert (samples / "drawn-2.npz").read_bytes() == whole.read_bytes()
    assert (samples / "drawn-2.png").read_bytes() == whole.with_suffix(".png").read_bytes()
    assert (samples / "drawn-3.npz").read_bytes() != whole.read_bytes()
    assert not list(samples.glob("*.parts"))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--classes", "7"], "SD-T904"), (["--classes", "dog"], "SD-T921"), (["--seeds", "1;2"], "SD-T921"),
        (["--classes", "2-0"], "SD-T911"), (["--seeds", "7-3"], "SD-T911"), (["--seeds", "0-999999999"], "SD-T911"),
        (["--classes", "0-999999999"], "SD-T904"), (["--seeds", ""], "SD-T921"),
        (["--sampler", "toi"], "SD-R110"), (["--weights", "ema"], "SD-C446"), (["--guidance", "2"], "SD-T923"),
    ],
)  # fmt: skip
def test_sample_refuses_invalid_options(sddit_run, trained, words, code):
    result = sddit_run("sample", trained, *words)
    assert result.status > 1
    assert code in result.stderr


def test_file_in_place_of_an_output_folder_is_refused_before_any_work(sddit_run, trained, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        result = sddit_run("sample", trained, "--out", out)
        assert (result.status, "SD-F705" in result.stderr) == (8, True)
    for words in (["--out", "file"], ["--out", "file/below", "--package"]):
        result = sddit_run("new-plugin", "my_loss", *words)
        assert (result.status, "SD-F705" in result.stderr) == (8, True)


@pytest.mark.parametrize("damage", ["model", "label"])
def test_sample_refuses_weights_of_another_model(sddit_run, toy_recipe, damage):
    recipe = toy_recipe.read_text(encoding="utf-8")
    folder = Path(json.loads(sddit_run(toy_recipe, "--json").stdout)["folder"])
    assert sddit_run("sample", folder).status == 0, recipe
    resolved = json.loads((folder / "recipe.resolved.json").read_text(encoding="utf-8"))
    if damage == "model":
        resolved["backbone"]["hidden"] *= 2
    else:
        resolved["ema"]["other"] = {"decay": 0.9}
    (folder / "recipe.resolved.json").write_text(json.dumps(resolved), encoding="utf-8")
    (folder / "recipe.resolved.json.sha256").unlink()
    result = sddit_run("sample", folder, *(["--weights", "other"] if damage == "label" else []))
    assert result.status == 5
    assert f"SD-C410: the checkpoint does not fit this recipe\n  where:  {folder / 'checkpoints'}" in result.stderr
    assert len(result.stderr.splitlines()) <= 8


def test_evaluate_without_extractors_does_not_sample(sddit_run, trained, monkeypatch):
    monkeypatch.setattr("sddit.runs.pipeline.evaluate_run", lambda *_, **__: pytest.fail("sampled"))
    result = sddit_run("evaluate", trained, "--json")
    assert (result.status, json.loads(result.stdout)) == (0, {})
    assert "names no extractor" in result.stderr


def test_evaluate_prints_scores(sddit_run, toy_recipe):
    run = json.loads(sddit_run(toy_recipe, 'evaluate.features=["toy"]', "evaluate.samples=24", "--json").stdout)[
        "folder"
    ]
    result = sddit_run("evaluate", run)
    assert result.status == 0, result.stderr
    assert re.search(r"^Frechet distance +[\d.e+-]+ +[\d.e+-]+", result.stdout, re.MULTILINE)
    scores = json.loads(sddit_run("evaluate", run, "--json").stdout)
    [one] = scores.values()
    assert one["n"] < one["samples"] == 24
    assert re.search(rf"^Frechet distance, all 24 samples +{one['fd_all']:.4g} *$", result.stdout, re.MULTILINE)
    assert one["title"] == "channel moments"


def test_evaluate_probes_and_searches_for_copies(sddit_run, toy_recipe):
    run = Path(json.loads(sddit_run(toy_recipe, "dataset.images=90", "--json").stdout)["folder"])
    result = sddit_run("evaluate", run, "--probe", "--copies")
    assert result.status == 0, result.stderr
    assert re.search(r"^linear probe of student, 30 held-out images \(chance 0\.333", result.stdout, re.MULTILINE)
    assert re.search(r"^2 +0\.\d{3} \(0\.\d{3}\)", result.stdout, re.MULTILINE)
    assert re.search(r"^pixels +[\d.]+ +0\.0\d+ +\S+copies-pixels\.png *$", result.stdout, re.MULTILINE)
    found = json.loads(sddit_run("evaluate", run, "--probe", "--json").stdout)
    assert found == {"probe": json.loads((run / "probe.json").read_text(encoding="utf-8"))}
    assert json.loads(sddit_run("evaluate", run, "--copies", "--json").stdout)["copies"]["pixels"]["title"] == "pixels"


MODE_PLUGIN = """
from sddit import hookimpl
from sddit.interfaces import EvaluateMode, FeatureParams, ModeOption

def count_files(samples, *, device, progress, first_file, second_file):
    return {"files": len({first_file, second_file}), "seed": None, "device": str(device), "samples": len(samples)}

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
    result = sddit_run("evaluate", trained, "--plugin", counting(), *files)
    assert result.status == 0, result.stderr
    assert re.search(r"^counted on cpu$", result.stdout, re.MULTILINE)
    assert re.search(r"^files counted +2 *$", result.stdout, re.MULTILINE)
    assert "not measured" not in result.stdout
    found = json.loads(sddit_run("evaluate", trained, "--plugin=./counting.py", *files, "--json").stdout)
    assert found == {"count": {"files": 2, "seed": None, "device": "cpu", "samples": found["count"]["samples"]}}
    assert json.loads((Path(trained) / "count.json").read_text()) == found["count"]
    assert found["count"]["samples"] > 0
    alone = sddit_run("evaluate", trained, "--plugin", "./counting.py", "--first-file", "a")
    assert (alone.status, "--first-file and --second-file must be used together" in alone.stderr) == (2, True)
    assert "A file to count." in sddit_run("evaluate", "--plugin", "./counting.py", "--help").stdout


def test_evaluate_knows_no_option_of_a_plugin_that_is_not_loaded(sddit_run, trained):
    result = sddit_run("evaluate", trained, "--first-file", "a")
    assert (result.status, "--first-file" in result.stderr) == (2, True)


def test_evaluate_refuses_a_mode_option_that_is_taken(sddit_run, trained, counting):
    result = sddit_run("evaluate", trained, "--plugin", counting("probe"))
    assert (result.status, "SD-P202" in result.stderr) == (3, True)


def test_evaluate_runs_a_mode_on_every_rank_and_prints_on_one(sddit_run, trained, counting, monkeypatch):
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    printed = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        result = sddit_run("evaluate", trained, "--plugin", counting(), "--first-file", "a", "--second-file", "b")
        assert result.status == 0, result.stderr
        printed[rank] = result.stdout
    assert "files counted" in printed["0"]
    assert printed["1"] == ""


def test_table_compares_runs_and_marks_damaged_ones(sddit_run, toy_recipe, tmp_path, monkeypatch):
    damages = {"recipe.resolved.json": b'{"train": {}}', "scores.json": b"[1]", "metrics.jsonl": b"\xff\xfe\n"}
    for seed in (0, 1):
        sddit_run(toy_recipe, f"seed={seed}", 'evaluate.features=["toy"]', "evaluate.samples=24")
    result = sddit_run("table")
    assert result.status == 0, result.stderr
    assert len(re.findall(r"^toy-\w{12}  4 ", result.stdout, re.MULTILINE)) == 2
    assert "toy FD" in result.stdout
    assert "(floor " in result.stdout
    markdown = sddit_run("table", "--markdown").stdout.splitlines()
    assert markdown[1].startswith("| --- |")
    rows = list(csv.DictReader(io.StringIO(sddit_run("table", "--csv").stdout)))
    assert len(rows) == 2
    assert float(rows[0]["images_per_second"]) > 0
    assert any(column.endswith(".fd") for column in rows[0])
    run = sorted((tmp_path / "runs").iterdir())[0]
    monkeypatch.chdir(run)
    assert re.search(rf"^{run.name} ", sddit_run("table", ".").stdout, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    for name, text in damages.items():
        whole = (run / name).read_bytes()
        (run / name).write_bytes(text)
        result = sddit_run("table")
        assert result.status == 0
        assert re.search(rf"^{run.name} +unreadable", result.stdout, re.MULTILINE), name
        assert len(re.findall(r"^toy-\w{12}  4 ", result.stdout, re.MULTILINE)) == 1, "the other run is shown"
        assert f"{run.name} is unreadable" in result.stderr
        assert f"{run.name},unreadable," in sddit_run("table", "--csv").stdout
        (run / name).write_bytes(whole)
    scores = (run / "scores.json").read_text()
    (run / "scores.json").write_text(scores.replace('"fd": ', '"fd": 1'))
    result = sddit_run("table")
    assert "SD-F704: a file of the run folder is not what was written" in result.stderr
    assert re.search(rf"^{run.name} +unreadable", result.stdout, re.MULTILINE)
    assert sddit_run("export", run).status == 8
    assert "SD-T922" in sddit_run("table", tmp_path / "nothing").stderr


@pytest.mark.parametrize(
    "words", [("--seconds", "nan"), ("--seconds", "inf"), ("--seconds", "0"), ("--rounds", "9" * 20)]
)
def test_bench_refuses_unbounded_durations(sddit_run, words):
    result = sddit_run("bench", *words)
    assert result.status == 2
    assert f"Invalid value for '{words[0]}'" in result.stderr


def test_bench_compares_recipes(sddit_run, toy_recipe):
    result = sddit_run("bench", toy_recipe, toy_recipe, "--rounds", "1", "--seconds", "0.02", "--json")
    assert result.status == 0, result.stderr
    found = json.loads(result.stdout)
    assert [figure["name"] for figure in found["figures"]] == ["toy", "toy"]
    assert found["figures"][0]["relative"] == 1
    assert found["peaks"]["fp32"] > 0


def test_score_line_does_not_repeat_itself():
    from types import SimpleNamespace

    from sddit.cli.commands.run import score_line

    known = {"fd_name": "FD", "fd": 62.2, "fd_all": 50.1, "times_floor": 40.0, "fd_floor": 1.56, "n": 100}
    rest = {"precision": 0.5, "recall": 0.25, "class_accuracy": None}
    once = score_line(SimpleNamespace(**known, **rest, samples=100))
    assert once == "FD 62.2, 40.0 times its floor 1.56 at n = 100; precision 0.50, recall 0.25"
    assert "; 50.1 at n = 1,000; " in score_line(SimpleNamespace(**known, **rest, samples=1000))


def test_check_shows_what_was_tested_and_every_finding(sddit_run, toys, tmp_path, loss_source):
    (tmp_path / "mine.py").write_text(loss_source, encoding="utf-8")
    result = sddit_run("check", "mine.py")
    assert result.status == 0
    assert re.search(r"^losses mine/mine +settings, shape, .*gradients.* pass$", result.stdout, re.MULTILINE)
    (tmp_path / "bad.py").write_text(loss_source.replace("dim=(1, 2, 3)", "dim=(2, 3)"), encoding="utf-8")
    result = sddit_run("check", "bad.py")
    assert result.status == 3
    assert result.stdout.rstrip().endswith("1 problem")
    assert "what forward returns for a full view has a wrong shape" in result.stderr
    assert json.loads(sddit_run("check", "bad.py", "--json").stdout)[0]["problems"][0]["code"] == "SD-P220"


def test_check_of_an_unknown_plugin_names_the_nearest(sddit_run, toys, tmp_path, loss_source):
    (tmp_path / "mine.py").write_text(loss_source, encoding="utf-8")
    result = sddit_run("check", "mime.py")
    assert result.status == 3
    assert "did you mean './mine.py'" in result.stderr
    assert "where:  command line" in result.stderr
