"""Charts of a probe, and the files of a probe in a run folder."""

from __future__ import annotations

from markupsafe import Markup

from sddit.evaluation.probe import NEIGHBOURS, PROBE, Probe, Table
from sddit.reports.charts import Reference, Series, as_file, line_chart
from sddit.storage.run_folder import RunFolder


def write_probe(folder: RunFolder, probe: Probe) -> None:
    """Write `probe.json` and its charts, `probe-linear.svg` and `probe-neighbours.svg`, into a run folder."""
    for name, chart in probe_charts(probe).items():
        folder.write_text(f"probe-{name}.svg", as_file(chart))
    folder.write_json(PROBE, probe.to_json())


def probe_charts(probe: Probe) -> dict[str, Markup]:
    """Draw `linear` and `neighbours`: accuracy by depth, one line per noise level."""
    return {
        "linear": _chart(probe, "Linear probe", probe.linear, probe.linear_untrained),
        "neighbours": _chart(probe, f"{NEIGHBOURS} nearest neighbours", probe.neighbours, probe.neighbours_untrained),
    }


def _chart(probe: Probe, title: str, trained: Table, untrained: Table) -> Markup:
    return line_chart(
        f"{title}: held-out accuracy",
        [Series(f"noise {noise:g}", probe.blocks, row) for noise, row in zip(probe.noise, trained, strict=True)],
        x_label="block",
        references=[
            Reference("chance", probe.chance),
            Reference("best of the untrained network", max(map(max, untrained))),
        ],
    )
