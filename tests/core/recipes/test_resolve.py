"""From a recipe as written to a recipe as run."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sddit.errors import Problem, SdditError
from sddit.plugins.host import Host
from sddit.recipes.merge import leaves
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import changed, resolve
from sddit.testing.toys.plugin import toy_host
from sddit.value_schedules import Ramp

Write = Callable[[str, str], Path]
Resolve = Callable[..., Recipe]
Problems = Callable[..., list[Problem]]

ROUND = {"train.steps": (1, 10**9), "train.batch": (1, 24), "sampler.steps": (2, 10_000), "backbone.depth": (1, 64)}


def test_defaults_are_filled_in_with_their_origin(resolved: Resolve, base: str) -> None:
    recipe = resolved(base, "sampler.steps=6")
    assert (recipe.name, recipe.seed, recipe.train.steps, recipe.sampler.params.steps) == ("recipe", 3, 10, 6)
    assert [recipe.attention.component.name, recipe.guidance.component.name] == ["sdpa", "none"]
    assert recipe.optimizer.component.qualified == "extras/adamw"
    assert (recipe.trackers, recipe.ema, recipe.features) == ({}, {}, {})
    assert recipe.teacher.momentum == Ramp(start=0.996, end=1.0, shape="cosine")
    assert {key: recipe.origins[key] for key in ("seed", "backbone.hidden", "sampler.steps", "train.keep")} == {
        "seed": "recipe.toml:1",
        "backbone.hidden": "recipe.toml:5",
        "sampler.steps": "command line",
        "train.keep": "default",
    }
    stated = {key for key, _ in leaves(recipe.to_json()) if key.partition(".")[0] not in {"name", "data", "code"}}
    assert set(recipe.origins) == stated


def test_what_was_used_is_recorded(resolved: Resolve) -> None:
    assert resolved().plugin_digests.keys() >= {"toy", "extras"}


def test_a_neutral_slot_takes_settings_without_a_name(resolved: Resolve, base: str) -> None:
    optimizer = resolved(base + "[optimizer]\nlr = { start = 1e-3, end = 0.0 }\n").optimizer
    assert (optimizer.component.name, optimizer.params.lr) == ("adamw", Ramp(start=1e-3, end=0.0))


def test_labelled_tables(resolved: Resolve, base: str) -> None:
    text = (
        base + '[loss.b]\nname = "toy"\nweight = 0\n[ema.long]\ndecay = 0.5\n[tracker.t]\nname = '
        '"toy"\n[evaluate]\nfeatures = ["toy"]'
    )
    recipe = resolved(text)
    assert (list(recipe.losses), list(recipe.active_losses), list(recipe.ema)) == (
        ["denoise", "b"],
        ["denoise"],
        ["long"],
    )
    assert (list(recipe.trackers), list(recipe.features)) == (["t"], ["toy"])
    assert recipe.evaluate.features == ("toy/toy",)
    assert resolved(text, "loss.b=false", "ema.long=false").to_json()["loss"].keys() == {"denoise"}


def rerun(recipe: Recipe, write: Write, host: Host, *overrides: str) -> Recipe:
    return resolve(write("runs/x/recipe.resolved.json", json.dumps(recipe.to_json(), indent=2)), overrides, host=host)


@given(
    st.fixed_dictionaries({key: st.integers(*bounds) for key, bounds in ROUND.items()}),
    st.floats(0, 1),
    st.floats(0, 0.75),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
def test_a_resolved_recipe_resolves_to_itself(
    resolved: Resolve, write: Write, host: Host, base: str, numbers: dict[str, int], end: float, ratio: float
) -> None:
    overrides = [f"{key}={value}" for key, value in numbers.items()]
    recipe = resolved(
        base, *overrides, f"teacher.momentum={{ start = 0.5, end = {end!r} }}", f"pair_sampler.mask_ratio={ratio!r}"
    )
    again = rerun(recipe, write, host)
    assert again.to_json() == recipe.to_json()
    assert (again.run_id, again.name, again.warnings) == (recipe.run_id, recipe.name, ())


def test_a_rerun_may_be_changed(resolved: Resolve, write: Write, host: Host) -> None:
    recipe = resolved()
    again = rerun(recipe, write, host, "train.steps=11")
    assert (again.train.steps, again.train.batch) == (11, recipe.train.batch)
    assert again.run_id != recipe.run_id


def test_a_recipe_in_memory_may_be_changed(resolved: Resolve, host: Host) -> None:
    recipe = resolved()
    assert changed(recipe, [], host=host).run_id == recipe.run_id
    other = changed(recipe, ["sampler.steps=9"], host=host)
    assert (other.sampler.params.steps, other.name, other.origins["seed"]) == (9, recipe.name, recipe.origins["seed"])
    with pytest.raises(SdditError, match=r"unknown key 'sampler\.step'"):
        changed(recipe, ["sampler.step=9"], host=host)


def test_a_rerun_says_what_has_changed_since(resolved: Resolve, write: Write, host: Host) -> None:
    tables = resolved().to_json()
    tables["data"]["fingerprint"] = "other"
    path = write("r.json", json.dumps(tables))
    assert [w for w in resolve(path, host=host).warnings if "data.fingerprint was other" in w]


@pytest.mark.parametrize("name", ["../x", "a/b", "", 3])
def test_a_resolved_name_stays_within_the_runs(resolved: Resolve, write: Write, host: Host, name: Any) -> None:
    with pytest.raises(SdditError, match="SD-R103"):
        resolve(write("r.json", json.dumps({**resolved().to_json(), "name": name})), host=host)


def test_the_run_id_ignores_what_changes_no_number(resolved: Resolve, base: str) -> None:
    first = resolved().run_id
    assert resolved(base, "train.log_every=3", "evaluate.batch=4", "train.threads=1").run_id == first
    assert resolved(base.replace('name = "toy"\nsteps', 'name = "toy/toy"\nsteps')).run_id == first
    assert resolved(base, "backbone.depth=2").run_id == first  # the default, written
    for override in (
        "seed=4",
        "train.steps=9",
        "backbone.depth=3",
        "optimizer.lr=1",
        "ema.main.decay=0.5",
        "dataset.images=25",
    ):
        assert resolved(base, override).run_id != first, override


DUPLICATE = "from sddit.testing.toys.plugin import register_samplers\n"


def test_one_file_plugins_are_found_by_path_and_named_by_file(write: Write, host: Host, base: str) -> None:
    write("recipes/base/duplicate.py", DUPLICATE)
    write(
        "recipes/base/a.toml", 'plugins = ["./duplicate.py"]\n' + base.replace('"toy"\nsteps', '"duplicate/toy"\nsteps')
    )
    try:
        recipe = resolve(write("recipes/b.toml", 'extends = "base/a.toml"\n'), host=host)
        assert recipe.plugins == ("./duplicate.py",)
        assert recipe.plugin_files == {"./duplicate.py": Path("recipes/base/duplicate.py")}
        assert recipe.plugin_digests["duplicate"] == host.rows["duplicate"].digest
        assert changed(recipe, ["seed=9"], host=host).plugin_files == recipe.plugin_files
        assert str(Path.cwd()) not in json.dumps(recipe.to_json())  # a run id is the same on every machine
    finally:
        host.remove("duplicate")


MEASURABLE = '[noise_schedule]\nname = "measurable"\n'


def with_schedule(base: str, lines: str) -> str:
    return base.replace('[noise_schedule]\nname = "toy"\n', MEASURABLE + lines)


def test_measured_becomes_the_number_of_the_data(resolved: Resolve, base: str) -> None:
    recipe = resolved(with_schedule(base, 'sigma_data = "measured"\n'))
    assert math.isclose(recipe.noise_schedule.params.sigma_data, 0.5)
    assert recipe.to_json()["noise_schedule"]["sigma_data"] == 0.5
    assert recipe.origins["noise_schedule.sigma_data"] == "recipe.toml:9, measured"
    assert recipe.warnings == ()
    assert recipe.run_id == resolved(with_schedule(base, "sigma_data = 0.5\n")).run_id


@pytest.mark.parametrize(("value", "warned"), [(0.46, False), (0.54, False), (0.44, True), (0.56, True)])
def test_a_number_far_from_the_data_is_warned_of(resolved: Resolve, base: str, value: float, warned: bool) -> None:
    warnings = resolved(with_schedule(base, f"sigma_data = {value}\n")).warnings
    assert [f"noise_schedule.sigma_data = {value:g}" in w and "recipe.toml:9" in w for w in warnings] == [True] * warned


def test_a_misspelt_key_does_not_hide_what_cannot_work_together(problems: Problems, base: str) -> None:
    """Read as the nearest key it stands for, it lets the rules between slots be asked; a wrong value does not."""
    found = [p.code for p in problems(base, "train.micro_bach=3", "sampler.sigma_min=1e9", "lss=1")]
    assert sorted(found) == ["SD-R102", "SD-R102", "SD-R108", "SD-T902"]
    alone = [p.code for p in problems(base, 'train.micro_batch="many"', "sampler.sigma_min=1e9")]
    assert alone == ["SD-R103"]


def test_all_problems_are_reported_at_once(problems: Problems) -> None:
    text = """
seed = -1
plugins = ["no one"]
steps = 100
[backbone]
name = "toi"
[noise_schedule]
name = "toy"
t_min = "low"
[pair_sampler]
name = "toy"
mask_ratio = 2.0
[loss.denoise]
weight = 1
[loss.Other]
name = "toy"
[dataset]
name = "toy"
flipp = true
[train]
batch = 8.0
precision = "fp16"
[tracker.x]
name = "no one/x"
"""
    found = [(p.code, p.where, p.what) for p in problems(text)]
    assert sorted(found) == [
        ("SD-P205", "recipe.toml:3", "no plugin named 'no one' is installed"),
        ("SD-R101", "recipe.toml", "no [sampler] in the recipe"),
        ("SD-R102", "recipe.toml:19", "unknown key 'dataset.flipp'"),
        ("SD-R102", "recipe.toml:4", "unknown key 'steps'"),
        ("SD-R103", "recipe.toml:15", "'Other' cannot be a label"),
        ("SD-R103", "recipe.toml:9", "'noise_schedule.t_min' is of the wrong kind"),
        ("SD-R105", "recipe.toml:21", "'train.batch' is a whole number"),
        ("SD-R107", "recipe.toml:2", "the seed is out of range"),
        ("SD-R108", "recipe.toml:12", "'pair_sampler.mask_ratio' is not allowed: must stay between 0 and 0.9"),
        ("SD-R108", "recipe.toml:22", "'train.precision' has no such choice"),
        ("SD-R109", "recipe.toml:13", "'loss.denoise.name' is missing"),
    ]


SOLID = '[backbone]\nname = "solid"\npatch = 4\n'


@pytest.mark.parametrize(
    ("lines", "code", "got", "expect", "fix"),
    [
        ("ptch = 4", "SD-R102", "ptch = 4", "did you mean 'patch'?", "sddit-run show backbones solid"),
        ("size = 'XL'", "SD-R108", 'size = "XL"', "one of B, S", ""),
        ("patch = true", "SD-R103", "patch = true", "whole number, 1 to 64", ""),
        ("patch = '4'", "SD-R103", 'patch = "4"', "whole number, 1 to 64", ""),
        ("patch = 4.0", "SD-R105", "patch = 4.0", "whole number, 1 to 64", "write 4"),
        ("patch = 4.5", "SD-R103", "patch = 4.5", "whole number, 1 to 64", ""),
        ("patch = 0", "SD-R108", "patch = 0", "whole number, 1 to 64", ""),
        ("inner = 3", "SD-R103", "inner = 3", "table of depth, shape", ""),
        ("inner.dpth = 3", "SD-R102", "dpth = 3", "one of depth, shape   (did you mean 'depth'?)", ""),
        ("inner.shape = [1]", "SD-R103", "shape = [1]", "[whole number, whole number]", ""),
        ("inner.shape = [1, 2.5]", "SD-R103", "shape[1] = 2.5", "[whole number, whole number]", ""),
        ("seed = 1", "SD-R102", "seed = 1", "", "move 'seed' to the top of the file"),
        ("", "SD-R109", "nothing", "whole number, 1 to 64", "patch = ..."),
    ],
)
def test_a_wrong_setting_says_what_is_allowed(
    problems: Problems, base: str, lines: str, code: str, got: str, expect: str, fix: str
) -> None:
    table = '[backbone]\nname = "solid"\n' + ("" if lines.startswith("patch") or not lines else "patch = 4\n") + lines
    (found,) = problems(base.replace('[backbone]\nname = "toy"\nhidden = 8\n', table + "\n"))
    assert (found.code, found.got) == (code, got)
    assert expect in found.expect and fix in found.fix, found


@pytest.mark.parametrize(
    ("lines", "code", "what", "expect"),
    [
        ("weight = -1", "SD-R108", "'loss.denoise.weight' is not allowed: must be at least 0", ""),
        ("weight = 'a'", "SD-R103", "'loss.denoise.weight' is of the wrong kind", "number or { start, end,"),
        ("weight = { start = 1.0 }", "SD-R109", "'loss.denoise.weight.end' is missing", "number"),
        (
            "weight = { start = 1, end = 0, shap = 1 }",
            "SD-R102",
            "unknown key 'loss.denoise.weight.shap'",
            "did you mean 'shape'",
        ),
        (
            "weight = { start = 1, end = 0, from = 1.5 }",
            "SD-R108",
            "'loss.denoise.weight.from' is not allowed: a float is a fraction of the run, 0.0 to 1.0; "
            "write a number of steps as an integer",
            "",
        ),
        ("weight = { start = 1, end = 'x' }", "SD-R103", "'loss.denoise.weight.end' is of the wrong kind", "number"),
        (
            "until = 1.5",
            "SD-R108",
            "'loss.denoise.until' is not allowed: a float is a fraction of the run, 0.0 to 1.0; "
            "write a number of steps as an integer",
            "",
        ),
        ("until = 'x'", "SD-R103", "'loss.denoise.until' is of the wrong kind", "steps (a whole number) or a fraction"),
        ("views = 'student'", "SD-R103", "'loss.denoise.views' is of the wrong kind", "list of text"),
        ("window = [1.0]", "SD-R103", "'loss.denoise.window' is of the wrong kind", "[number, number]"),
    ],
)
def test_value_schedules_and_moments_are_explained(
    problems: Problems, base: str, lines: str, code: str, what: str, expect: str
) -> None:
    (found,) = problems(base.replace("[loss.denoise]\n", f"[loss.denoise]\n{lines}\n"))
    assert (found.code, found.what, found.where) == (code, what, "recipe.toml:14")
    assert expect in found.expect


@pytest.mark.parametrize(
    ("override", "code", "fix"),
    [
        ("dataset.flip=True", "SD-R103", "write true"),
        ("train.steps=010", "SD-R103", "write 10"),
        ("train.steps=nan", "SD-R106", ""),
        ("train.batch=sixteen", "SD-R103", "write a whole number"),
        ("seed=true", "SD-R103", ""),
        ("seed=9223372036854775807", "", ""),
        ("seed=9223372036854775808", "SD-R106", ""),
        ("evaluate.weights=3", "SD-R103", """'evaluate.weights="3"'"""),
        ("evaluate.weights=1e5", "SD-R103", """'evaluate.weights="1e5"'"""),
        ("evaluate.weights=true", "SD-R103", """'evaluate.weights="true"'"""),
        ("evaluate.features=pixels", "SD-R103", """'evaluate.features=["pixels"]'"""),
        ("evaluate.features=a, b", "SD-R103", """'evaluate.features=["a", "b"]'"""),
        ("start.run=2024", "SD-R103", "start.run=./2024"),
        ("start.run=1e5", "SD-R103", "start.run=./1e5"),
        ("train.precision=fp16", "SD-R108", "bf16: fp16 is not offered"),
        ("train.precision=FLOAT32", "SD-R108", "write fp32"),
        ("loss.denois.weight=2", "SD-R109", "correct the label, or loss.denois.name = ..."),
        ("loss.other.weight=2", "SD-R109", "one of the labels denoise"),
        ("loss.nothing=false", "SD-R134", ""),
        ("ema.student.decay=0.5", "SD-R103", ""),
        ("loss=1", "SD-R103", ""),
        ("loss.weight=0", "SD-R103", "under it weight = 0"),
        ("train=1", "SD-R103", ""),
        ("backbone=toy", "SD-R103", ""),
        ("sampler.name=3", "SD-R103", ""),
        ("loss=false", "SD-R101", ""),
        ("loss.denoise.name=absent", "SD-P210", "pip install no-such-package"),
        ("loss.denoise.name=./x.py", "SD-R130", "plugins"),
        ("backbone.name=pkg.mod:Net", "SD-R130", "plugins"),
        ("evaluate.features=['nope']", "SD-R110", ""),
        ("lr=1e-3", "SD-R102", "write optimizer.lr"),
        ("tarin.steps=3", "SD-R102", ""),
    ],
)
def test_what_is_typed_is_answered(
    resolved: Resolve, problems: Problems, base: str, override: str, code: str, fix: str
) -> None:
    if not code:
        resolved(base, override)
        return
    (found,) = problems(base, override)
    assert (found.code, fix in found.fix) == (code, True), found


def test_a_component_that_is_offered_twice_is_chosen_by_its_plugin(write: Write, base: str) -> None:
    host = toy_host()
    host.use(["./extras.py"], Path(__file__).parent)
    write("duplicate.py", DUPLICATE)
    path = write("r.toml", 'plugins = ["./duplicate.py"]\n' + base)
    assert resolve(path, ["sampler.name=toy/toy"], host=host).sampler.component.qualified == "toy/toy"
    with pytest.raises(SdditError, match="offered more than once") as caught:
        resolve(path, host=host)
    assert [(p.code, p.expect) for p in caught.value.problems] == [("SD-P202", "one of toy/toy or duplicate/toy")]


def test_a_value_in_place_of_the_tables_of_extractors_is_refused(problems: Problems, base: str) -> None:
    (found,) = problems(base, "evaluate.features=['toy']", "features=3")
    assert (found.code, found.expect) == ("SD-R103", "[features.LABEL]")


def test_one_list_of_array_tables_is_not_a_table_of_terms(problems: Problems, base: str) -> None:
    found = problems(base.replace("[loss.denoise]", "[[loss]]"))
    assert [p.code for p in found] == ["SD-R103"]
    assert "[loss.LABEL]" in found[0].expect


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_every_key_with_one_edit_is_refused_by_name(problems: Problems, base: str, data: st.DataObject) -> None:
    lines = base.splitlines()
    numbers = [n for n, line in enumerate(lines) if "=" in line]
    number = data.draw(st.sampled_from(numbers))
    key, equals, value = lines[number].partition(" =")
    at = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from("qzx_7"))
    edit = data.draw(st.sampled_from(["drop", "swap", "add"]))
    typo = {
        "drop": key[:at] + key[at + 1 :],
        "swap": key[:at] + letter + key[at + 1 :],
        "add": key[:at] + letter + key[at:],
    }[edit]
    lines[number] = typo + equals + value
    table = next((line.strip("[]") for line in reversed(lines[:number]) if line.startswith("[")), "")
    full = f"{table}.{typo}".lstrip(".")
    found = problems("\n".join(lines))
    unknown = [p for p in found if p.code == "SD-R102"] or [p for p in found if f"'{table}.name' is missing" == p.what]
    assert any(p.what in (f"unknown key {full!r}", f"'{table}.name' is missing") for p in unknown), (typo, found)
    assert all(p.where.startswith("recipe.toml:") for p in unknown)


def test_messages_are_short_and_clean(problems: Problems, base: str) -> None:
    for problem in problems(base, "backbone.hiddn=\x1b[31mred", "train.stps=1"):
        assert len(problem.lines()) <= 12
        assert "\x1b" not in "\n".join(problem.lines())


def test_resolving_and_planning_import_no_torch(tmp_path: Path, base: str) -> None:
    (tmp_path / "r.toml").write_text(base, encoding="utf-8")
    script = (
        "import sys; from pathlib import Path; from sddit.recipes.costs import plan; from sddit.recipes.resolve "
        "import resolve\n"
        "from sddit.testing.toys.plugin import toy_host\n"
        f"host = toy_host(); host.use(['./extras.py'], Path({str(Path(__file__).parent)!r}))\n"
        f"print(plan(resolve({str(tmp_path / 'r.toml')!r}, host=host)).flops_per_image, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[0]) > 0
    assert out[1] == "False"


def test_a_plugin_that_fails_is_the_only_complaint_about_what_it_would_bring(
    problems: Problems, base: str, write: Write
) -> None:
    write("bad.py", "1 / 0")
    text = 'plugins = ["./bad.py"]\n' + base.replace('[loss.denoise]\nname = "toy"', '[loss.denoise]\nname = "NAME"')
    for name in ("brought", "bad/brought"):
        assert [p.code for p in problems(text.replace("NAME", name))] == ["SD-P201"]
    (alone,) = problems(text.replace("NAME", "brought").replace('"./bad.py"', ""))
    assert alone.code == "SD-R110"


def test_a_missing_plugin_is_named_once(problems: Problems, base: str) -> None:
    text = 'plugins = ["no one"]\n' + base.replace('[loss.denoise]\nname = "toy"', '[loss.denoise]\nname = "no one/x"')
    (found,) = problems(text + '[tracker.t]\nname = "no one/y"\n')
    assert (found.code, found.where) == ("SD-P205", "recipe.toml:1")


@pytest.mark.parametrize(("override", "key"), [("loss.denoise.nam=2", "nam"), ("dataset.nme=2", "nme")])
def test_the_name_of_a_component_is_among_its_keys(problems: Problems, base: str, override: str, key: str) -> None:
    (found,) = problems(base, override)
    assert (found.code, found.got) == ("SD-R102", f"{key} = 2")
    assert "name" in found.expect.partition("   ")[0].removeprefix("one of ").split(", ")
    assert "did you mean 'name'?" in found.expect


def test_an_empty_choice_is_not_offered(problems: Problems, base: str) -> None:
    text = base.replace('[backbone]\nname = "toy"\nhidden = 8', '[backbone]\nname = "solid"\npatch = 4\nkind = "C"')
    (found,) = problems(text)
    assert found.expect == "one of A, B"


def test_a_misspelt_name_is_named_where_it_stands(problems: Problems, base: str) -> None:
    (found,) = problems(base.replace('[sampler]\nname = "toy"', '[sampler]\nnmae = "toy"'))
    assert (found.code, found.what, found.got) == ("SD-R109", "'sampler.name' is missing", 'nmae = "toy"')
    assert found.where.endswith("recipe.toml:20")
    assert found.fix.startswith("rename 'nmae' if it was meant")


def test_a_label_with_swapped_letters_is_recognized(problems: Problems, resolved: Resolve, base: str) -> None:
    (found,) = problems(base, "loss.denosie.weight=2")
    assert "did you mean 'denoise'?" in found.expect
    (found,) = problems(base, "train.precision=fp61")
    assert "did you mean 'fp64'?" in found.expect
    with_ema = base + "[ema.main]\ndecay = 0.9\n"
    assert any("did you mean ema.main?" in text for text in resolved(with_ema, "ema.mian.decay=0.8").warnings)
    assert not any("did you mean" in text for text in resolved(with_ema, "ema.slow.decay=0.8").warnings)
    assert not any("did you mean" in text for text in resolved(with_ema + "[ema.mian]\ndecay = 0.8\n").warnings)


def test_text_in_a_file_gets_no_quotes_of_a_shell(problems: Problems, base: str) -> None:
    (found,) = problems(base + "[evaluate]\nweights = 3\n")
    assert (found.got, found.fix) == ("weights = 3", "put the text in quotes")


def test_a_run_that_is_too_short_gets_the_command_that_works(problems: Problems, resolved: Resolve, base: str) -> None:
    warm = base + "[optimizer]\nwarmup = 8\n"
    typed = ("train.steps=3", "loss.denoise.weight=2")
    (found,) = problems(warm, *typed)
    command = shlex.split(found.fix)
    assert command[0] == "sddit-run"
    assert command[2:] == [*typed, "optimizer.warmup=0.1"]
    resolved(warm, *command[2:])
    later = warm.replace('[loss.denoise]\nname = "toy"\n', '[loss.denoise]\nname = "toy"\nuntil = 9\n')
    found_both = problems(later, "train.steps=3")
    assert len({one.fix for one in found_both}) == 1
    resolved(later, *shlex.split(found_both[0].fix)[2:])
    (found,) = problems(base.replace("steps = 10", "steps = 3") + "[optimizer]\nwarmup = 8\n")
    assert found.fix == "optimizer.warmup = 0.1"


@pytest.mark.parametrize(
    "name", ["caf\u00e9", "cafe\u0301", "my run", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u4e00"]
)
def test_letters_of_every_alphabet_and_spaces_can_name_a_recipe(write: Write, host: Host, base: str, name: str) -> None:
    assert resolve(write(f"{name}.toml", base), host=host).name == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize("name", ["(draft) a+b", "a:b", "#1", "-a"])
def test_another_name_is_proposed(write: Write, host: Host, base: str, name: str) -> None:
    with pytest.raises(SdditError, match=r"SD-R103(.|\n)*rename the file, such as to ([\w-]+\.toml)") as caught:
        resolve(write(f"{name}.toml", base), host=host)
    near = caught.value.problems[0].fix.rpartition(" ")[2]
    assert resolve(write(near, base), host=host).name == near.removesuffix(".toml")
