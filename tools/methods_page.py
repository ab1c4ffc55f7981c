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
FOLDERS = ("", "digits", "emoji", "imagenet256")  # from small to large
NONE = "–"
ROOT_ORDER = ("quickstart", "fashion", "emoji", "emoji-latent")  # recipes in no folder, from small to large
HEAD = """\
<!-- Written by tools/methods_page.py from the recipes and the registries. -->
# Methods

The shipped methods, ordered by their papers. Each has a small recipe on handwritten digits and on emoji, for two CPU
cores, and one for ImageNet at 256x256. `sddit-run digits/tread` runs a recipe; `sddit-run -n digits/tread` prints its
plan. The small recipes of one data set share base network, optimizer and length of training unless they state
otherwise, so they can be arms of one [ablation](recipes.md#ablations). [Recipes](recipes.md#included-recipes) groups
the methods by what they change.

- **Parameters**: those of the network, without the heads of losses.
- **Cost**: floating-point operations of training for one image, with heads, teachers and what the optimizer computes
  on matrices, averaged over the run. Plain DiT on the same data is 1.00: `digits/dit`, `emoji/dit`, or on ImageNet
  `imagenet256/dit-b2` and `imagenet256/dit-xl2`, by the size in the recipe's name. A dash: there is no such recipe.
  Sampling and guidance are not counted.
- **Pair sampler and losses**: the components that define the objective. `sddit-run show pair_samplers masked` and
  `sddit-run show losses align` list the settings of two of them.
- **Published** and **our choice**: what a recipe takes from the paper or its code, and where it differs or had to
  choose, as it states in `[about]`. A dash: it states no difference.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe that states its method."""

    name: str  # digits/dit
    recipe: Recipe
    cost: Plan
    second_stage: bool  # it starts from, or learns from, the run of another recipe

    @property
    def position(self) -> tuple[str, str, int, int, bool, str]:
        """Where it is on the page: by paper, method, data, stage and name."""
        folder, _, name = self.name.rpartition("/")
        within = ROOT_ORDER.index(name) if not folder else 0
        about = self.recipe.about
        return about.paper, about.method, FOLDERS.index(folder), within, self.second_stage, name


def entries() -> list[Entry]:
    """Return the shipped recipes that state a method, in the order of the page."""
    found = []
    for folder in FOLDERS:
        for path in sorted((shipped() / folder).glob("*.toml")):
            if "about" in load(path).tables:
                name, recipe = path.relative_to(shipped()).with_suffix("").as_posix(), planned(path)
                found.append(Entry(name, recipe, plan(recipe), bool(earlier_runs(path))))
    return sorted(found, key=lambda entry: entry.position)


def earlier_runs(path: Path) -> list[str]:
    """Return the tables of a recipe that name the run of a first stage."""
    return [table for table in ("start", "snapshot") if table in load(path).tables]


def planned(path: Path) -> Recipe:
    """Resolve a recipe for a plan: without its data, and without the run that a second stage starts from."""
    merged = load(path, [f"{table}=false" for table in earlier_runs(path)])
    merged.planned = True
    return resolve_merged(merged)


def page(found: Sequence[Entry]) -> str:
    """Return the page."""
    parts = [HEAD, "| method | paper | smallest recipe | cost | pair sampler and losses |\n|---|---|---|---|---|"]
    methods = [(method, list(group)) for method, group in groupby(found, lambda entry: entry.recipe.about.method)]
    for method, group in methods:
        first = group[0]
        cells = (f"[{method}](#{anchor(method)})", linked(first.recipe.about.paper), f"`{first.name}`")
        numbers = (cost_over_baseline(first), components(first.recipe))
        parts.append(f"| {' | '.join((*cells, *numbers))} |")
    for method, group in methods:
        parts += section(method, group)
    return "\n".join(parts) + "\n"


def section(method: str, group: Sequence[Entry]) -> Iterator[str]:
    """Yield the section of one method."""
    yield f"\n## {method}\n"
    yield f"{linked(group[0].recipe.about.paper)}\n"
    yield "| recipe | parameters | cost | pair sampler and losses | published | our choice |\n|---|---|---|---|---|---|"
    published = ours = None
    for entry in group:
        about, name = entry.recipe.about, f"`{entry.name}`"
        numbers = (parameters(entry), cost_over_baseline(entry), components(entry.recipe))
        stated = (unless_repeated(about.published, published), unless_repeated(about.ours, ours))
        yield f"| {' | '.join((name, *numbers, *stated))} |"
        published, ours = about.published, about.ours


def unless_repeated(text: str, above: str | None) -> str:
    """Return the text of a cell, or that it is the one of the row above."""
    return "as above" if text and text == above else text or NONE


def components(recipe: Recipe) -> str:
    """Return the pair sampler and the losses of a recipe."""
    names = [recipe.pair_sampler.component.name, *(one.component.name for one in recipe.active_losses.values())]
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def parameters(entry: Entry) -> str:
    count = entry.cost.backbone_parameters
    return "not stated" if count is None else format_si(count)


def cost_over_baseline(entry: Entry) -> str:
    """Return the FLOPs per image as a multiple of those of plain DiT on the same data, of the same size."""
    path = baseline_of(entry)
    if path is None:
        return NONE
    own, baseline = flops_per_image(entry.cost), flops_per_image(plan(planned(path)))
    return f"{own / baseline:.2f}" if own and baseline else "not stated"


def baseline_of(entry: Entry) -> Path | None:
    """Return the recipe of plain DiT on the same data, on ImageNet of the size in the recipe's name."""
    folder, _, name = entry.name.rpartition("/")
    names = [f"dit-{part}" for part in name.split("-")] if folder == "imagenet256" else ["dit"]
    paths = [shipped() / (folder or entry.recipe.dataset.component.name) / f"{one}.toml" for one in names]
    return next((path for path in paths if path.is_file()), None)


def flops_per_image(cost: Plan) -> float | None:
    """Return the FLOPs of a step for one image of its batch, with a part of the optimizer's update."""
    return None if cost.flops_per_step is None else cost.flops_per_step / cost.batch


def linked(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})" if paper.startswith("arXiv:") else paper


def anchor(title: str) -> str:
    """Return the anchor that a heading has on a page."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def main() -> None:
    PAGE.write_text(page(entries()), encoding="utf-8")


if __name__ == "__main__":
    main()
