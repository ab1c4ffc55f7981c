"""docs/tutorial-loss.md: what it shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sddit.cli.app import call
from sddit.errors import SdditError
from sddit.plugins.host import Host, using_host
from sddit.recipes.resolve import resolve
from sddit.testing import TOY_RECIPE, check_plugin, toy_host
from sddit.training.build import build_session
from sddit.training.loop import take_step, training_mode

DOCS = Path(__file__).parents[1] / "docs"
TUTORIAL = (DOCS / "tutorial-loss.md").read_text(encoding="utf-8")
LOSS = DOCS / "examples" / "edge_loss.py"
MISTAKES = {
    "shape": ("return torch.stack(losses).mean(dim=0)", "return torch.stack(losses).mean()"),
    "gradient": ("error = outputs[name].x0 - view.x0", "error = outputs[name].x0.detach() - view.x0"),
    "hook": ("def register_losses(", "def register_loses("),
}


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with using_host(toy_host()) as host:
        yield host


def block(mark: str) -> str:
    """The fenced block after a mark."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```", TUTORIAL, re.DOTALL)
    assert found, f"the tutorial has no block marked {mark!r}"
    return found[1]


@pytest.mark.parametrize("name", ["edge_loss.py", "edges.toml"])
def test_it_shows_the_files_as_they_are(name):
    assert block(f"file: examples/{name}") == (DOCS / "examples" / name).read_text(encoding="utf-8")


def test_the_part_of_a_file_that_it_shows_is_in_the_file():
    file = "examples/fixed_target.py"
    assert block(f"part: {file}") in (DOCS / file).read_text(encoding="utf-8")


def test_the_fixed_target_conforms_and_trains_its_head_alone(tmp_path):
    check_plugin(DOCS / "examples" / "fixed_target.py")
    (tmp_path / "fixed_target.py").write_bytes((DOCS / "examples" / "fixed_target.py").read_bytes())
    term = '[loss.fixed]\nname = "fixed_target"\n'
    (tmp_path / "fixed.toml").write_text(f'plugins = ["./fixed_target.py"]\n{TOY_RECIPE}\n{term}', encoding="utf-8")
    session = build_session(resolve("fixed.toml"), torch.device("cpu"))
    before = {name: value.clone() for name, value in session.student.terms["fixed"].state_dict().items()}
    with training_mode(session):
        take_step(session)
    after = session.student.terms["fixed"].state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.weight", "head.bias"]


def test_the_plugin_it_ends_with_conforms():
    check_plugin(LOSS)


def test_the_plugin_it_ends_with_trains(tmp_path):
    (tmp_path / "edge_loss.py").write_bytes(LOSS.read_bytes())
    example = (DOCS / "examples" / "edges.toml").read_text(encoding="utf-8")
    term = example.partition("\n\n")[2]
    (tmp_path / "edges.toml").write_text(f'plugins = ["./edge_loss.py"]\n{TOY_RECIPE}\n{term}', encoding="utf-8")
    session = build_session(resolve("edges.toml"), torch.device("cpu"))
    for _ in range(2):
        terms = take_step(session).metrics.losses
        session.step += 1
    assert 0 < terms["edges"] < 100


def test_the_recipe_it_ends_with_extends_the_shipped_one():
    host = Host()
    if any(row.state != "loaded" for row in host.rows.values() if row.builtin):
        pytest.skip("a plugin of the quickstart is not here")
    recipe = resolve(DOCS / "examples" / "edges.toml", host=host)
    assert "edges" in recipe.active_losses
    assert len(recipe.active_losses) > 1


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_the_message_it_shows(mistake, tmp_path):
    right, wrong = MISTAKES[mistake]
    source = LOSS.read_text(encoding="utf-8")
    assert source.count(right) == 1
    assert wrong in TUTORIAL.replace("(registry)", "(")
    (tmp_path / "edge_loss.py").write_text(source.replace(right, wrong), encoding="utf-8")
    with pytest.raises(SdditError) as caught:
        check_plugin("edge_loss.py")
    assert str(caught.value).replace(str(tmp_path), "") == block(f"mistake: {mistake}").rstrip("\n")


def test_the_commands_it_shows_are_there(capsys):
    shown = re.findall(r"^\$ sddit-run (.+)$", TUTORIAL, re.MULTILINE)
    assert len(shown) >= 3
    assert call(shown[0].split()) == 0  # new-plugin my_loss
    said = capsys.readouterr().out
    assert said == TUTORIAL.partition(f"$ sddit-run {shown[0]}\n")[2].partition("```")[0]
    check_plugin("my_loss.py")
