"""Finding and loading plugins: one bad plugin stays in its own row."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sddit.errors import SdditError, describe_exception
from sddit.plugins.discovery import plugin_name, plugins_named_by
from sddit.plugins.host import Host, host, registry, using_host

HOOK = "from sddit import hookimpl\n"
MakeHost = Callable[[], Host]


def refusal(host: Host, *names: str, folder: Path | None = None) -> str:
    """Return the message with which `use` refuses."""
    with pytest.raises(SdditError) as caught:
        host.use(names, folder)
    return str(caught.value)


def test_a_third_party_plugin_is_listed_from_its_metadata_and_not_imported(core_host, distribution, tmp_path):
    canary = tmp_path / "imported"
    distribution("acme-dist", "acme", f"open({str(canary)!r}, 'w').close()")
    row = core_host().rows["acme"]
    assert (row.distribution, row.version, row.state, row.builtin) == ("acme-dist", "1.0", "not loaded", False)
    assert not canary.exists()


def test_a_named_plugin_is_loaded_and_what_it_adds_bears_its_name(core_host, distribution, loss_source):
    distribution("acme-dist", "acme", loss_source)
    host = core_host()
    host.use(["acme"])
    assert host.rows["acme"].state == "loaded"
    assert host.rows["acme"].registers == {"losses": ["mine"]}
    assert host.registries.losses.get("mine").qualified == "acme/mine"
    assert host.registries.losses.get("acme/mine") is host.registries.losses.get("mine")


def test_loading_twice_registers_once(core_host, distribution, loss_source):
    distribution("acme-dist", "acme", loss_source)
    host = core_host()
    host.use(["acme"])
    host.use(["acme"])
    assert [c.origin for c in host.registries.losses] == ["acme"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("def f(:", "SyntaxError"),
        (HOOK + "@hookimpl\ndef register_loses(registry): ...", "unknown hook 'register_loses'; did you mean "
                                                                "'register_losses'?"),
        (HOOK + "def register_losses(registry): ...", "register_losses lacks the @hookimpl decorator"),
        (HOOK + "@hookimpl\ndef regster_losses(registry): ...", "unknown hook 'regster_losses'; did you mean "
                                                                "'register_losses'?"),
        (HOOK + "@hookimpl\ndef register_losses(registries): ...", "Argument(s) {'registries'} are declared in "
                                                                   "the hookimpl"),
        (HOOK + "@hookimpl\ndef register_losses(registry): registry.add('x')", "TypeError"),
        ("x = 1", "it registers nothing"),
    ],
)  # fmt: skip
def test_a_bad_plugin_says_what_is_wrong_and_harms_nothing_else(core_host, distribution, loss_source, source, said):
    distribution("bad-dist", "bad", source)
    distribution("good-dist", "good", loss_source)
    host = core_host()
    message = refusal(host, "bad")
    assert "SD-P201" in message
    assert said in message
    assert host.rows["bad"].state == "failed"
    host.use(["good"])
    assert [c.qualified for c in host.registries.losses] == ["good/mine"]
    assert [c.name for c in host.registries.optimizers] == ["adamw"]


def test_the_failing_line_is_named_and_the_cause_is_kept(core_host, distribution):
    distribution("bad-dist", "bad", "x = 1\ny = x / 0\n")
    host = core_host()
    with pytest.raises(SdditError) as caught:
        host.use(["bad"])
    assert caught.value.problems[0].where.endswith("module_of_bad_dist.py:2")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_plugin_that_fails_half_way_leaves_nothing_behind(core_host, distribution, loss_source):
    distribution(
        "half-dist", "half", loss_source + "\n@hookimpl\ndef register_samplers(registry):\n    raise OSError('no')\n"
    )
    host = core_host()
    refusal(host, "half")
    assert list(host.registries.losses) == []
    assert host.rows["half"].registers == {}


def test_every_problem_is_reported_at_once(core_host, distribution):
    distribution("bad-dist", "bad", "1 / 0")
    message = refusal(core_host(), "bad", "nowhere", "./none.py")
    assert message.count("error SD-") == 3


def test_an_unknown_plugin_brings_the_nearest_name(core_host, distribution, loss_source):
    distribution("acme-dist", "acme", loss_source)
    message = refusal(core_host(), "acne")
    assert "SD-P205" in message
    assert "did you mean 'acme'?" in message


def test_two_distributions_with_one_plugin_name_are_distinguished(core_host, distribution, loss_source):
    distribution("one-dist", "acme", loss_source)
    distribution("two-dist", "acme", loss_source)
    host = core_host()
    assert {"one-dist:acme", "two-dist:acme"} <= host.rows.keys()
    message = refusal(host, "acme")
    assert "SD-P203" in message
    assert "one-dist:acme, two-dist:acme" in message
    host.use(["two-dist:acme"])
    assert [c.qualified for c in host.registries.losses] == ["two-dist:acme/mine"]
    assert host.rows["one-dist:acme"].state == "not loaded"


def test_two_components_of_one_name_clash_only_when_the_bare_name_is_used(core_host, distribution, loss_source):
    distribution("one-dist", "one", loss_source)
    distribution("two-dist", "two", loss_source)
    host = core_host()
    host.use(["one", "two"])
    assert host.registries.losses.names() == ["one/mine", "two/mine"]
    with pytest.raises(SdditError, match="SD-P202") as caught:
        host.registries.losses.get("mine")
    assert "one/mine or two/mine" in str(caught.value)
    assert host.registries.losses.get("two/mine").origin == "two"


def test_no_third_party_component_takes_the_place_of_a_built_in(core_host, distribution):
    source = """
        from sddit import hookimpl
        from sddit.interfaces import OptimizerParams

        @hookimpl
        def register_optimizers(registry):
            registry.add("adamw", "nowhere:Nothing", params=OptimizerParams, summary="Not the real one.")
    """
    distribution("acme-dist", "acme", source)
    host = core_host()
    assert host.registries.optimizers.get("adamw").origin == "sddit"
    host.use(["acme"])
    with pytest.raises(SdditError, match="SD-P202"):
        host.registries.optimizers.get("adamw")


def test_loading_everything_keeps_each_failure_in_its_row(core_host, distribution, loss_source):
    distribution("bad-dist", "bad", "1 / 0")
    distribution("good-dist", "good", loss_source)
    host = core_host()
    host.load_everything()
    assert (host.rows["bad"].state, host.rows["good"].state) == ("failed", "loaded")
    assert host.rows["good"].seconds > 0


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("import random; random.seed(1)", "Python's global random state"),
        ("import numpy; numpy.random.seed(1)", "NumPy's global random state"),
        ("import torch; torch.manual_seed(1)", "torch's global random state"),
        ("import torch; torch.set_default_dtype(torch.float64)", "torch's default dtype"),
        ("import torch; torch.set_num_threads(torch.get_num_threads() + 1)", "the number of torch's threads"),
        ("import os; os.chdir('/')", "the working directory"),
    ],
)
def test_a_plugin_that_changes_shared_state_is_refused_and_the_state_put_back(
    core_host, distribution, loss_source, source, named
):
    def state() -> tuple[object, ...]:
        return (
            random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist(),  # noqa: NPY002
            torch.get_default_dtype(), torch.get_num_threads(), Path.cwd(),
        )  # fmt: skip

    before = state()
    distribution("bad-dist", "bad", f"{source}\n{loss_source}")
    message = refusal(core_host(), "bad")
    assert f"importing it changed {named}" in message
    assert state() == before


def test_importing_torch_for_the_first_time_changes_no_shared_state(distribution, loss_source, tmp_path):
    """In a fresh process, where the guard cannot have seen torch before."""
    from subprocess import run

    file = tmp_path / "mine.py"
    file.write_text(loss_source, encoding="utf-8")
    code = (
        "import sys; from sddit.plugins.host import Host; h = Host(('sddit',)); "
        "assert 'torch' not in sys.modules; h.use(['./mine.py'])"
    )
    done = run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file.write_text(f"import torch\ntorch.set_default_dtype(torch.float64)\n{loss_source}", encoding="utf-8")
    done = run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "importing it changed torch's default dtype" in done.stderr


def test_what_a_plugin_prints_does_not_reach_our_output(core_host, distribution, loss_source, capsys):
    distribution("acme-dist", "acme", f"print('hello')\n{loss_source}")
    core_host().use(["acme"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello" in err


def test_the_environment_limits_third_party_plugins(core_host, distribution, loss_source, monkeypatch):
    distribution("one-dist", "one", loss_source)
    distribution("two-dist", "two", loss_source)
    monkeypatch.setenv("SDDIT_PLUGINS", "two")
    host = core_host()
    message = refusal(host, "one")
    assert "SD-P206" in message
    assert "SDDIT_PLUGINS=two,one" in message
    host.use(["two"])
    host.load_everything()
    assert (host.rows["one"].state, host.rows["two"].state) == ("not allowed", "loaded")


def test_an_empty_limit_means_none_and_spares_the_built_ins(core_host, tmp_path, loss_source, monkeypatch):
    monkeypatch.setenv("SDDIT_PLUGINS", "")
    (tmp_path / "mine.py").write_text(loss_source, encoding="utf-8")
    host = core_host()
    assert "SD-P206" in refusal(host, "./mine.py", folder=tmp_path)
    assert host.rows["sddit"].state == "loaded"
    monkeypatch.setenv("SDDIT_PLUGINS", "mine.py")
    host.use(["./mine.py"], tmp_path)
    assert host.rows["mine"].state == "loaded"


@pytest.fixture
def folder(tmp_path: Path, loss_source: str) -> Path:
    """A recipe's folder with a one-file plugin in it."""
    path = tmp_path / "recipe"
    path.mkdir()
    (path / "mine.py").write_text(loss_source, encoding="utf-8")
    return path


def test_a_file_next_to_the_recipe_is_a_plugin(core_host, folder):
    host, heard = core_host(), []
    host.announce = lambda text: heard.append((text, "mine" in host.rows))
    host.use(["./mine.py"], folder)
    row = host.rows["mine"]
    assert host.registries.losses.get("mine").qualified == "mine/mine"
    assert (row.state, len(row.digest), row.file) == ("loaded", 64, str(folder / "mine.py"))
    assert row.identity == row.digest
    [(text, imported)] = heard
    assert str(folder / "mine.py") in text
    assert row.digest[:12] in text
    assert not imported, "path and hash are reported before the import"


def test_the_file_that_was_hashed_is_the_one_that_runs(core_host, folder):
    """A cached compilation next to it, newer or not, plays no part."""
    host = core_host()
    host.use(["./mine.py"], folder)
    assert not (folder / "__pycache__").exists()


def test_an_edited_file_is_loaded_again_and_an_unchanged_one_is_not(core_host, folder):
    host = core_host()
    host.use(["./mine.py"], folder)
    first = host.registries.losses.get("mine")
    host.use(["./mine.py"], folder)
    assert host.registries.losses.get("mine") is first
    source = (folder / "mine.py").read_text(encoding="utf-8")
    (folder / "mine.py").write_text(source.replace("Squared error.", "Another."), encoding="utf-8")
    host.use(["./mine.py"], folder)
    assert host.registries.losses.get("mine").summary == "Another."


def test_a_file_outside_the_folder_is_refused_also_through_a_link(core_host, folder, loss_source):
    (folder.parent / "outside.py").write_text(loss_source, encoding="utf-8")
    (folder / "link.py").symlink_to(folder.parent / "outside.py")
    for name in ("../outside.py", "./link.py", str(folder.parent / "outside.py")):
        assert "SD-R130" in refusal(core_host(), name, folder=folder)


def test_a_missing_file_brings_the_nearest_one(core_host, folder):
    message = refusal(core_host(), "./mien.py", folder=folder)
    assert "SD-P207" in message
    assert "./mine.py" in message


def test_a_path_that_is_not_a_python_file_says_how_a_plugin_ends(core_host, folder):
    message = refusal(core_host(), "./edges.toml", folder=folder)
    assert "a plugin's file ends in .py: './edges.py'" in message
    assert "././" not in message


def test_a_folder_named_like_a_file_is_not_offered_as_one(core_host, folder):
    (folder / "dir.py").mkdir()
    message = refusal(core_host(), "./dir.py", folder=folder)
    assert "dir.py (a folder)" in message
    assert "one of ./mine.py" in message
    assert "did you mean './dir.py'" not in message


def test_two_files_of_one_name_are_refused(core_host, folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "mine.py").write_bytes((folder / "mine.py").read_bytes())
    host = core_host()
    host.use(["./mine.py", "./sub/mine.py"], folder)  # the same code
    (folder / "sub" / "mine.py").write_bytes((folder / "mine.py").read_bytes() + b"# other")
    assert "SD-P203" in refusal(host, "./sub/mine.py", folder=folder)
    (folder / "sddit.py").write_bytes((folder / "mine.py").read_bytes())
    assert "SD-P203" in refusal(host, "./sddit.py", folder=folder)


def test_a_broken_file_can_be_fixed_and_tried_again(core_host, folder, loss_source):
    (folder / "mine.py").write_text("1 / 0", encoding="utf-8")
    host = core_host()
    message = refusal(host, "./mine.py", folder=folder)
    assert f"{folder / 'mine.py'}:1" in message
    (folder / "mine.py").write_text(loss_source, encoding="utf-8")
    host.use(["./mine.py"], folder)
    assert host.rows["mine"].state == "loaded"


def test_the_owner_of_a_line_of_code_is_known(core_host, folder):
    host = core_host()
    host.use(["./mine.py"], folder)
    row = host.owner_of(str(folder / "mine.py"))
    assert row is not None
    assert row.name == "mine"
    assert host.owner_of(__file__) is None
    assert host.owner_of(host.rows["sddit"].code) is None
    assert host.owner_of(torch.__file__) is None


def test_qualified_names_ask_for_their_plugins():
    assert plugins_named_by(["denoising", "acme/masked", "one-dist:acme/x", "acme/other"]) == ("acme", "one-dist:acme")


def test_a_plugin_is_added_and_taken_back(core_host):
    from sddit.testing.toys import plugin as toys

    host = core_host()
    host.add("toy", toys)
    assert host.registries.backbones.get("toy").qualified == "toy/toy"
    host.remove("toy")
    assert host.registries.backbones.names() == []
    with pytest.raises(TypeError, match="it registers nothing"):
        host.add("empty", object())
    assert "empty" not in host.rows


def test_another_host_stands_in_for_a_while(core_host):
    other = core_host()
    with using_host(other):
        assert host() is other
        assert registry("losses") is other.registries.losses
        with pytest.raises(SdditError, match="SD-R111") as caught:
            registry("loses")
        assert "did you mean 'losses'?" in str(caught.value)
    assert host() is not other


def test_a_built_in_that_did_not_load_is_an_installation_fault(core_host):
    host = core_host()
    host.raise_for_builtins()
    host.rows["sddit"].state, host.rows["sddit"].error = "failed", "ImportError: no"
    with pytest.raises(SdditError, match="built-in plugin 'sddit' failed to load"):
        host.raise_for_builtins()


def test_small_things():
    assert plugin_name(Path("a/my loss-2.py")) == "my_loss_2"
    assert describe_exception(ValueError("a\nb")) == "ValueError: a b"
    assert describe_exception(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(describe_exception(ValueError("x" * 10_000))) < 300
