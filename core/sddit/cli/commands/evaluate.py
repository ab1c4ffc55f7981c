"""`sddit-run evaluate`: score a trained run, probe its tokens, search for copies, or compute FID on given files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from sddit.cli.modes import ModeCommand
from sddit.cli.options import PathOption, device_option, json_and_progress_option, non_empty, plugin_option
from sddit.cli.output import console, current_state, error_console, notice, print_json, show_progress, table
from sddit.data.undecoded import refuse_latents
from sddit.distributed import processes
from sddit.errors import printable
from sddit.interfaces import EvaluateMode
from sddit.interfaces.metric_names import KNOWN_METRICS
from sddit.storage.run_folder import RECIPE

EXAMPLES = """
sddit-run evaluate runs/quickstart-4f2c91d07a55
sddit-run evaluate RUN --json
sddit-run evaluate RUN --weights student
sddit-run evaluate RUN --probe       class information in the tokens
sddit-run evaluate RUN --copies      samples closest to training images
sddit-run evaluate RUN --inception WEIGHTS.pth --reference BATCH.npz
sddit-run evaluate RUN --plugin ./mine.py --help   options of your plugin
"""
ROWS = {
    "fd": "Frechet distance",
    "fd_codec": "Frechet distance of held-out images, encoded and decoded",
    "fd_all": "Frechet distance, all {samples} samples",
    "kid": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "copied": "near copies of training images",
    "class_accuracy": "class accuracy",
}
Part = tuple[Callable[..., dict[str, Any]], Callable[[Mapping[str, Any]], None]]  # measures, and prints what it returns


@click.command("evaluate", cls=ModeCommand, examples=EXAMPLES)
@click.argument("run", type=PathOption())
@device_option
@click.option(
    "--probe", is_flag=True, help="Probe the tokens of every block for class information; writes probe.json and charts."
)
@click.option(
    "--copies", is_flag=True, help="Search the saved samples for copies of training images; writes copies.json."
)
@click.option(
    "--weights",
    type=non_empty,
    metavar="LABEL",
    help="Weights to score: student, the label of an [ema], or one that sddit-run ema printed.  [default: as in the "
    "recipe]",
)
@plugin_option
@json_and_progress_option
def evaluate(
    run: Path,
    device: str,
    probe: bool,
    copies: bool,
    weights: str | None,
    plugin: tuple[str, ...],
    as_json: bool,
    **paths: Path | None,
) -> None:
    """Score the samples of a run, probe it or search for copies."""
    current_state().parallel = True
    processes.placement()
    parts: dict[str, Part] = {}
    if probe:
        parts["probe"] = measure_probe, print_probe
    if copies:
        parts["copies"] = measure_copies, partial(print_copies, run)
    for mode, chosen in evaluate.chosen_modes(paths):
        parts[mode.name] = partial(measure_mode, mode, chosen), partial(print_mode, mode)
    if weights and parts:
        raise click.UsageError(f"--weights is for scores, not for --{next(iter(parts))}")
    if asked := [f"--{name}" for name in parts if name != "probe"] or ([] if parts else ["scores"]):
        refuse_latents(run, ", ".join(asked))
    if not parts:
        from sddit.recipes.checks.evaluation_rules import why_no_scores
        from sddit.recipes.resolve import resolve

        recipe = run / RECIPE  # a folder that is not a run is refused when it is loaded
        if recipe.is_file() and (reason := why_no_scores(resolve(recipe))):
            if not processes.is_reported_elsewhere():
                notice(f"no scores: {reason}")
                if as_json:
                    print_json({})
            return
        parts["scores"] = partial(measure_scores, weights=weights or ""), print_scores
    with show_progress(error_console() if as_json else console()) as progress:
        results = {name: measure(run, device=device, progress=progress) for name, (measure, _) in parts.items()}
    if processes.rank() > 0 and processes.has_launcher():
        return
    if as_json:
        print_json(results.get("scores", results))
        return
    for name, (_, print_part) in parts.items():
        print_part(results[name])


def measure_scores(run: Path, weights: str, **settings: Any) -> dict[str, Any]:
    from sddit.runs.average_scores import score_average
    from sddit.runs.pipeline import evaluate_run
    from sddit.storage.averages import width_of

    if width_of(weights) is not None:
        scores = score_average(run, weights, **settings)
    else:
        scores = evaluate_run(run, weights=weights, **settings)
    return {label: one.to_json() for label, one in scores.items()}


def measure_probe(run: Path, **settings: Any) -> dict[str, Any]:
    from sddit.evaluation.probing import probe_run
    from sddit.reports.run.probe_charts import write_probe
    from sddit.storage.run_folder import RunFolder

    probe = probe_run(run, **settings)
    with RunFolder(run) as folder:
        write_probe(folder, probe)
    return probe.to_json()


def measure_copies(run: Path, **settings: Any) -> dict[str, Any]:
    from sddit.evaluation.copies import copies_of_run

    return {label: one.to_json() for label, one in copies_of_run(run, **settings).items()}


def measure_mode(mode: EvaluateMode, paths: Mapping[str, Path], run: Path, **settings: Any) -> dict[str, Any]:
    from sddit.evaluation.scoring import run_mode

    return run_mode(run, mode, paths=paths, **settings)


def print_probe(probe: Mapping[str, Any]) -> None:
    """Print the held-out accuracy of both probes: a line per block, a column per noise level."""
    out = console()
    legend = f"chance {probe['chance']:.3f}; in brackets: the same network untrained"
    for kind, title in (("linear", "linear probe"), ("neighbours", "nearest neighbours")):
        out.print(f"{title} of {probe['weights']}, {probe['heldout']} held-out images ({legend})", style="bold")
        block = table("block", *(f"noise {noise:g}" for noise in probe["noise"]))
        for column, number in enumerate(probe["blocks"]):
            pairs = zip(probe[kind], probe[f"{kind}_untrained"], strict=True)
            block.add_row(str(number), *(f"{row[column]:.3f} ({plain[column]:.3f})" for row, plain in pairs))
        out.print(block)


def print_copies(run: Path, copies: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the fraction of samples close to training images, and the image file of the closest pairs."""
    block = table("features", "near copies", "held-out images", "closest pairs")
    for label, one in copies.items():
        pairs_image = run / "samples" / f"copies-{label.replace('/', '-')}.png"
        block.add_row(one["title"], figure(one["share"]), figure(one["floor"]), str(pairs_image))
    console().print(block)


def print_mode(mode: EvaluateMode, figures: Mapping[str, Any]) -> None:
    """Print the scores of an extractor's mode, without those that were not measured."""
    block = table("", "samples")
    for key, title in mode.rows.items():
        if figures[key] is not None:
            block.add_row(title, figure(figures[key]))
    out = console()
    out.print(printable(mode.heading.format_map(figures)), style="bold")
    out.print(block)


def print_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table per extractor: each score next to that of held-out images."""
    out = console()
    for label, one in scores.items():
        out.print(f"{one['title']} ({label}), {one['n']} images against {one['training']}", style="bold")
        block = table("", "samples", "held-out images")
        for key, title in ROWS.items():
            if one.get(key) is not None:
                block.add_row(title.format_map(one), figure(one[key]), figure(one.get(f"{key}_floor")))
        for key, value in one.get("own", {}).items():
            block.add_row(KNOWN_METRICS[key].title if key in KNOWN_METRICS else key, figure(value), "")
        out.print(block)


def figure(value: float | None) -> str:
    """Format a score with four digits; empty if there is none."""
    return "" if value is None else f"{value:.4g}"
