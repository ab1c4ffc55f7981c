"""Score weights that `sddit-run ema` made, and keep the scores for the report of the run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from sddit.distributed import processes
from sddit.evaluation.scores import Scores
from sddit.evaluation.scoring import read_scores
from sddit.progress import Progress
from sddit.recipes.resolve import resolve_run
from sddit.recipes.start_weights import find_weights
from sddit.reports.run.run_data import RunCost, ScoredAverage
from sddit.runs.pipeline import evaluate_run
from sddit.runs.report_data import read_average_scores, write_run_report
from sddit.storage.averages import AVERAGE_SCORES, width_of
from sddit.storage.run_folder import COST, REPORT, RunFolder, read_json


def score_average(run: Path, label: str, *, device: str, progress: Progress) -> dict[str, Scores]:
    """Score the average `label` of a run as its own samples are scored. Keeps the scores, and writes the report again.

    Of several processes, only the main one returns scores.
    """
    weights = find_weights(run, label)
    sigma_rel = width_of(label)
    assert sigma_rel is not None, "an average is named after its width"
    with nullcontext() if processes.rank() else RunFolder(run) as folder:
        scores = evaluate_run(run, device=device, progress=progress, weights=label)
        if folder is not None and scores:
            kept = [one for one in read_average_scores(run) if (one.label, one.step) != (label, weights.step)]
            kept.append(ScoredAverage(label, sigma_rel, weights.step, scores))
            kept.sort(key=lambda one: (one.step, one.sigma_rel))
            folder.write_json(AVERAGE_SCORES, [asdict(one) for one in kept])
            rewrite_report(folder)
    return scores


def rewrite_report(folder: RunFolder) -> None:
    """Write the report of a finished run again; one that is not finished gets its report at the end."""
    if (folder.path / REPORT).is_file():
        recipe, cost = resolve_run(folder.path), RunCost(**read_json(folder.path / COST))
        folder.write_text(REPORT, write_run_report(recipe, folder.path, read_scores(folder.path), cost))
