"""docs/compare-a-loss.md: what it shows is what happens."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from sddit.ablations.analysis.statistics import Verdict
from sddit.ablations.planning.ablation_settings import AblationSettings
from sddit.ablations.planning.arms import Ablation, expand
from sddit.plugins.host import Host
from sddit.recipes.merge import load
from sddit.recipes.resolve import resolve

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS / "examples"
PAGE = (DOCS / "compare-a-loss.md").read_text(encoding="utf-8")
FILE, MORE = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def compared(tmp_path: Path):
    """`compared(text, *overrides)`: the ablation with further arms, next to the files that it extends."""

    def put(text: str = "", *overrides: str) -> Ablation:
        for name in ("edge_loss.py", "edges.toml"):
            (tmp_path / name).write_bytes((EXAMPLES / name).read_bytes())
        (tmp_path / "edges_compared.toml").write_text(f"{FILE}\n{text}", encoding="utf-8")
        return expand(load(tmp_path / "edges_compared.toml", overrides), host=Host())

    return put


def test_it_shows_the_file_as_it_is() -> None:
    assert (EXAMPLES / "edges_compared.toml").read_text(encoding="utf-8") == FILE


def test_every_file_it_names_is_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(links) >= 4
    assert all((DOCS / link.partition("#")[0]).is_file() for link in links)


def test_its_arms_are_a_plain_dit_without_and_with_the_loss(compared) -> None:
    without, with_loss = compared().arms
    assert (without.baseline, with_loss.baseline) == ("without", "without")
    assert without.recipe.losses == resolve("digits/dit", host=Host()).losses
    assert with_loss.recipe.losses.keys() - without.recipe.losses.keys() == {"edges"}
    assert (without.recipe.seed, len(compared().settings.seeds)) == (with_loss.recipe.seed, 5)


def test_the_further_arms_are_ones(compared) -> None:
    *_, strong, other = compared(MORE).arms
    assert strong.recipe.losses["edges"].params.weight == 1.0
    assert other.recipe.losses == resolve("quickstart", host=Host()).losses


def test_an_arm_of_other_seeds_is_the_baseline_otherwise(compared) -> None:
    duplicate = compared("[ablation.arms.duplicate]\nseed = 100\nloss.edges = false").arms[-1].recipe
    assert duplicate.seed == 100
    assert duplicate.losses == compared().arms[0].recipe.losses


def test_the_overrides_it_gives_are_taken(compared) -> None:
    given = [text.strip('"') for text in re.findall(r"`(\"?(?:ablation|evaluate)\.[^`]+)`", PAGE) if "=" in text]
    assert len(given) == 6
    plain = compared()
    for text in given:
        changed = compared("", text)
        assert (changed.settings, changed.base.evaluate) != (plain.settings, plain.base.evaluate), text
    assert len(compared("", *[text for text in given if "grid" in text]).arms) == 2 * 3


def test_the_words_it_explains_are_the_verdicts() -> None:
    rows = re.findall(r"^\| ([a-z0-9 ,]+) \| ", PAGE, re.MULTILINE)[1:]
    assert {word for row in rows for word in row.split(", ")} == set(get_args(Verdict))


def test_its_commands_are_of_the_file_it_shows() -> None:
    shown = re.findall(r"^\$ sddit-run (.+)$", PAGE, re.MULTILINE)
    assert len(shown) == 2
    assert all("edges_compared.toml" in command for command in shown)
    assert tomllib.loads(FILE)["ablation"].keys() <= AblationSettings.model_fields.keys()
