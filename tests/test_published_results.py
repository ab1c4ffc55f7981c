"""docs/results: every shipped ablation is published, and what the README says of the main comparison is what was
published.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sddit.ablations.analysis.results import AblationResults, gather
from sddit.ablations.analysis.statistics import summarize
from sddit.ablations.analysis.table import comparisons, format_summary
from sddit.ablations.planning.arms import expand
from sddit.formatting import format_si
from sddit.recipes.merge import load

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "docs" / "results"
ABLATIONS = sorted(path for path in (ROOT / "recipes" / "ablations").glob("*.toml"))


def row(results: AblationResults, label: str) -> str:
    """An arm of the README's table, from `mean ± std verdict` of each metric on."""
    cells = []
    for metric in results.plan.metrics:
        compared = comparisons(results, metric)
        word = f" {compared[label].verdict}" if label in compared else ""
        cells.append(format_summary(summarize(list(results.figure(label, metric).values()))) + word)
    flops = {arm.label: arm.flops for arm in results.plan.arms}
    return f"| {' | '.join([*cells, format_si(flops[label])])} |"


@pytest.mark.parametrize("recipe", ABLATIONS, ids=lambda path: path.stem)
def test_every_small_ablation_is_published_and_compares_its_rerun(recipe: Path) -> None:
    published = expand(load(recipe, [])).settings.published
    assert (recipe.parent / published).resolve() == PUBLISHED / recipe.stem
    results = gather(PUBLISHED / recipe.stem)
    assert results.plan.name == recipe.stem
    assert {one.status for one in results.runs} == {"finished"}
    assert f"({recipe.stem}/README.md)" in (PUBLISHED / "README.md").read_text(encoding="utf-8")


def test_nothing_is_published_that_no_recipe_makes() -> None:
    assert {path.name for path in PUBLISHED.iterdir() if path.is_dir()} == {path.stem for path in ABLATIONS}


def test_the_readme_says_of_the_main_comparison_what_was_published() -> None:
    results = gather(PUBLISHED / "sd_dit_vs_masking")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for arm in results.plan.arms:
        assert row(results, arm.label) in page, arm.label
    assert row(results, "mdt") != row(results, "maskdit")


def verdicts(name: str, label: str) -> set[str]:
    """Return the verdicts of all metrics on one arm of a published ablation."""
    results = gather(PUBLISHED / name)
    return {comparisons(results, metric)[label].verdict for metric in results.plan.metrics}


def doubtful(name: str) -> set[str]:
    """Return the arms that the page of a published ablation marks as doubtful."""
    page = (PUBLISHED / name / "README.md").read_text(encoding="utf-8")
    return set(re.findall(r"^- \*\*(\S+)\*\* against .*\*\*Doubtful: diagnostics alarm", page, re.MULTILINE))


def test_the_findings_of_the_index_are_the_verdicts() -> None:
    """Each claim of the paragraph under its table."""
    assert verdicts("sd_dit_vs_masking", "sd_dit") == {"within noise"}
    assert verdicts("sd_dit_vs_masking", "mdt") == {"better"}
    assert verdicts("discrimination_weight", "weight=0.3") == {"better"}
    plan = gather(PUBLISHED / "discrimination_weight").plan
    flops = {arm.label: arm.flops for arm in plan.arms}
    assert f"{flops['weight=0.3'] / flops[plan.arms[0].baseline]:.2f}" == "1.81"
    assert "weight=0.3" in doubtful("discrimination_weight")
    assert "sd_dit" in doubtful("sd_dit_vs_masking_flops") & doubtful("time_sampling")
    assert doubtful("mask_ratio") == {f"mask_ratio={ratio}" for ratio in ("0.1", "0.2", "0.3", "0.5")}
    assert not doubtful("sd_dit_vs_masking")
    for hidden in ("0.1", "0.2", "0.3", "0.5"):
        results = gather(PUBLISHED / "mask_ratio")
        for metric in ("classifier.fd", "mobilenet.fd"):
            assert comparisons(results, metric)[f"mask_ratio={hidden}"].verdict == "worse"
    assert verdicts("time_sampling", "edm_noisier") == {"better"}
    assert verdicts("time_sampling", "sd_dit") == {"within noise"}
    assert verdicts("sd_dit_vs_masking_flops", "dit") == {"better", "within noise"}
    for behind in ("sd_dit", "maskdit", "mdt"):
        assert verdicts("sd_dit_vs_masking_flops", behind) <= {"worse", "within noise"}
        assert "worse" in verdicts("sd_dit_vs_masking_flops", behind)
