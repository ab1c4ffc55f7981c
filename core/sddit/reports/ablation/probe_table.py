"""Compute the table of probes of an ablation report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import LEVEL, Comparison, p_text, summarize
from sddit.ablations.analysis.table import against_baselines, format_summary
from sddit.errors import SdditError
from sddit.evaluation.probe import Probe, read_probe
from sddit.reports.ablation.curves import probe_chart
from sddit.reports.rendering import sentence


@dataclass(frozen=True, slots=True)
class Probed:
    """Class information in the tokens of each arm."""

    rows: Sequence[tuple[str, int, str, str, str]]  # arm, seeds, linear, neighbours, linear compared with the baseline
    charts: Sequence[Markup]
    chance: float
    untrained: float  # accuracy of the linear probe of the network before training


def probed(results: AblationResults) -> Probed | None:
    """Return the probes of the runs that have one; None if there is none."""
    probes: dict[str, dict[int, Probe]] = {label: {} for label in results.plan.labels}
    for row in results.runs:
        if probe := probe_of(results.folder / row.folder):
            probes[row.arm][row.seed] = probe
    having = {label: list(of_seeds.values()) for label, of_seeds in probes.items() if of_seeds}
    if not having:
        return None
    best = {
        label: {seed: probe.best(probe.linear)[0] for seed, probe in of_seeds.items()}
        for label, of_seeds in probes.items()
    }
    compared = against_baselines(results, best, "higher")
    rows = [
        (
            label,
            len(of_arm),
            format_summary(summarize(list(best[label].values()))),
            format_summary(summarize([probe.best(probe.neighbours)[0] for probe in of_arm])),
            comparison_text(compared[label]) if label in compared else "baseline",
        )
        for label, of_arm in having.items()
    ]
    headings = {"linear": "Linear probe: held-out accuracy", "neighbours": "Nearest neighbours: held-out accuracy"}
    charts = [probe_chart(heading, results, having, which) for which, heading in headings.items()]
    first = next(iter(having.values()))[0]
    return Probed(rows, charts, first.chance, first.best(first.linear_untrained)[0])


def comparison_text(one: Comparison) -> str:
    """Return `better: -0.12, 95% interval -0.2 to -0.04 over 5 seeds, p = 0.013 corrected for 4 arms`."""
    return sentence("probe_comparison", one=one, level=LEVEL, p_text=p_text)


def probe_of(run: Path) -> Probe | None:
    """Return the probe of a run; None if it is missing or damaged."""
    try:
        return read_probe(run)
    except SdditError:
        return None
