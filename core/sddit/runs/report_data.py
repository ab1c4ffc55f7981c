"""Gather the data of a run's report from its folder."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from sddit.evaluation.probe import read_probe
from sddit.evaluation.sample_images import previews
from sddit.evaluation.scores import Scores
from sddit.generation import caption_of
from sddit.recipes.checks.evaluation_rules import why_no_scores
from sddit.recipes.costs import plan
from sddit.recipes.merge import leaves
from sddit.recipes.recipe import Recipe
from sddit.reports.run.run_data import NextStep, ReportData, RunCost
from sddit.reports.run.run_report import write_report
from sddit.storage.metrics_log import read_metrics
from sddit.storage.run_folder import ENVIRONMENT, METRICS, read_changes, read_json


def write_run_report(recipe: Recipe, folder: Path, scores: Mapping[str, Scores], cost: RunCost) -> str:
    """Return the HTML report of a run folder."""
    command = f"sddit-run {recipe.path or recipe.name}"  # that repeats this run
    grids = previews(folder)
    changes = [
        f"changed during the run: {change['key']} from {change['from']} to {change['to']}; "
        "schedules relative to the planned length changed with it"
        for change in read_changes(folder)
    ]
    return write_report(
        ReportData(
            title=recipe.name,
            summary=summary(recipe),
            status="finished",
            command=command,
            cost=cost,
            metrics=read_metrics(folder / METRICS),
            grid=grids[-1][1] if grids else None,
            previews=grids,
            scores=scores,
            no_scores="" if scores else why_no_scores(recipe),
            caption=caption_of(recipe),
            probe=read_probe(folder),
            monitors={label: chosen.params.monitors() for label, chosen in recipe.active_losses.items()},
            noise_bins=("least noise", "second quarter", "third quarter", "most noise"),
            recipe=recipe.to_json(),
            origins=recipe.origins,
            environment={key: str(value) for key, value in leaves(read_json(folder / ENVIRONMENT)) if value != {}},
            warnings=[*recipe.warnings, *changes],
            next_steps=list(next_steps(recipe, folder, command)),
        )
    )


def summary(recipe: Recipe) -> dict[str, str]:
    """Describe data, views and each loss in a line, from the summaries of the components."""
    facts = recipe.facts
    _, height, width = facts.image
    classes = f"{facts.num_classes} classes" if facts.num_classes else "no classes"
    losses = {f"loss.{label}": chosen.component.summary for label, chosen in recipe.active_losses.items()}
    about = recipe.about
    method = {"Method": f"{about.method} ({about.paper})" if about.paper else about.method} if about.method else {}
    return {
        **method,
        "Data": f"{facts.source}; {height}x{width}, {classes}",
        "Views": recipe.pair_sampler.component.summary,
        **losses,
    }


def cost_of(recipe: Recipe, folder: Path) -> RunCost:
    """Return parameters and FLOPs by formula, and time and memory as measured in this run."""
    planned, metrics = plan(recipe), read_metrics(folder / METRICS)
    parts = [planned.backbone_parameters, *planned.heads_parameters.values()]
    seconds = metrics[-1]["seconds"] if metrics else 0.0
    return RunCost(
        seconds=seconds,
        images_per_second=metrics[-1]["images"] / seconds if seconds else None,
        parameters=None if None in parts else sum(part or 0 for part in parts),
        flops_per_step=planned.flops_per_step,
        flops=planned.training_flops,
        peak_memory=peak_memory(),
        device=read_json(folder / ENVIRONMENT)["device"],
    )


def peak_memory() -> float:
    """Return the peak memory of this process in bytes; on CUDA, that of its tensors."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def next_steps(recipe: Recipe, folder: Path, command: str) -> Iterator[NextStep]:
    """Yield commands to try next with any run."""
    yield NextStep("More samples, with guidance:", f"sddit-run sample {folder} --guidance 1.5")
    for label in list(recipe.active_losses)[1:]:
        yield NextStep(f"The control arm: the same run without loss.{label}:", f"{command} loss.{label}.weight=0")
    yield NextStep("The same run with another seed, to see the variation:", f"{command} seed={recipe.seed + 1}")
    yield NextStep("All runs side by side:", f"sddit-run table {folder.parent}")
