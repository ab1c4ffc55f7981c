"""Write docs/methods.md: the methods that have recipes, from the recipes and the registries.

python tools/methods_page.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from sddit.formatting import format_si
from sddit.recipes.costs import Plan, plan
from sddit.recipes.merge import load
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve_merged
from sddit.recipes.search import shipped

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
FOLDERS = ("digits", "emoji", "imagenet256", "")
HEAD = """\
<!-- Written by tools/methods_page.py from the recipes and the registries. -->
# Methods

Each method is a recipe on the same base as the others, and a switch in an [ablation](recipes.md). The published part
and our part are what its recipe states in `[about]`. Cost: parameters of the network, and the floating-point operations
of a training step for one image, as a multiple of plain DiT's under the same base; both are computed from the formulas
of the components, heads and teachers included.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe that states its method."""

    name: str  # digits/dit
    recipe: Recipe
    cost: Plan


def entries() -> list[Entry]:
    """Return the shipped recipes that state a method, by paper, method and folder."""
    found = []
    for folder in FOLDERS:
        for path in sorted((shipped() / folder).glob("*.toml")):
            if "about" in load(path).tables:
                recipe = planned(path)
                found.append(Entry(path.relative_to(shipped()).with_suffix("").as_posix(), recipe, plan(recipe)))
    return sorted(found, key=lambda entry: (entry.recipe.about.paper, entry.recipe.about.method))


def planned(path: Path) -> Recipe:
    """Resolve a recipe for a plan: without its data, and without the run that a second stage starts from."""
    merged = load(path, [f"{table}=false" for table in ("start", "snapshot") if table in load(path).tables])
    merged.planned = True
    return resolve_merged(merged)


def page(found: Sequence[Entry]) -> str:
    """Return the page."""
    parts = [HEAD, "| method | paper | recipes |\n|---|---|---|"]
    methods = [(method, list(group)) for method, group in groupby(found, lambda entry: entry.recipe.about.method)]
    for method, group in methods:
        names = ", ".join(f"`{entry.name}`" for entry in group)
        parts.append(f"| [{method}](#{anchor(method)}) | {linked(group[0].recipe.about.paper)} | {names} |")
    for method, group in methods:
        parts += section(method, group)
    return "\n".join(parts) + "\n"


def section(method: str, group: Sequence[Entry]) -> Iterator[str]:
    """Yield the section of one method."""
    yield f"\n## {method}\n"
    yield f"{linked(group[0].recipe.about.paper)}\n"
    yield "| recipe | published | our choice | components | parameters | cost |\n|---|---|---|---|---|---|"
    for entry in group:
        about, multiple = entry.recipe.about, cost_over_baseline(entry)
        cells = (f"`{entry.name}`", about.published, about.ours, components(entry.recipe), parameters(entry), multiple)
        yield f"| {' | '.join(cells)} |"


def components(recipe: Recipe) -> str:
    """Return what distinguishes the objective: pair sampler and losses."""
    names = [recipe.pair_sampler.component.name, *(one.component.name for one in recipe.active_losses.values())]
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def parameters(entry: Entry) -> str:
    count = entry.cost.backbone_parameters
    return "not stated" if count is None else format_si(count)


def cost_over_baseline(entry: Entry) -> str:
    """Return the FLOPs per image as a multiple of those of plain DiT on the same data, of the same size."""
    folder, _, name = entry.name.rpartition("/")
    size = name.rpartition("-")[2] if folder == "imagenet256" else ""
    path = shipped() / (folder or entry.recipe.dataset.component.name) / f"dit{'-' + size if size else ''}.toml"
    if not path.is_file():
        return ""
    own, baseline = entry.cost.flops_per_image, plan(planned(path)).flops_per_image
    return f"{own / baseline:.2f}" if own and baseline else "not stated"


def linked(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})" if paper.startswith("arXiv:") else paper


def anchor(title: str) -> str:
    """Return the anchor that a heading has on a page."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def main() -> None:
    PAGE.write_text(page(entries()), encoding="utf-8")


if __name__ == "__main__":
    main()
