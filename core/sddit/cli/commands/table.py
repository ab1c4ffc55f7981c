"""`sddit-run table`: compare the scores of runs, a line per run, or of the arms of an ablation. Imports no torch."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sddit import formatting
from sddit.ablations.planning.records import PLAN
from sddit.cli.common import PathOption, SdditCommand, console, notice
from sddit.cli.common import table as text_table
from sddit.errors import SdditError, error, printable
from sddit.formatting import format_duration
from sddit.interfaces.metric_names import KNOWN_METRICS, metric_values
from sddit.storage.metrics_log import last_metrics
from sddit.storage.run_folder import METRICS, RECIPE, SCORES, read_json

EXAMPLES = """
sddit-run table                          every run in runs/
sddit-run table runs/dit-* runs/quickstart-*
sddit-run table runs/teacher_noise-0c11d2e4f3a5    the arms of an ablation
sddit-run table --markdown               or --latex
sddit-run table --csv > runs.csv         every score with all digits
"""
SHOWN = ("fd", "class_accuracy", "precision", "recall")
FORMATS = ("--markdown", "--latex", "--csv")


@dataclass(frozen=True, slots=True)
class Line:
    """One run as a line of the table."""

    name: str
    steps: int
    planned: int
    seconds: float
    images_per_second: float
    scores: dict[str, dict[str, Any]]
    unreadable: bool = False  # the folder is damaged: only the name is known


@click.command("table", cls=SdditCommand, examples=EXAMPLES)
@click.argument("folders", nargs=-1, type=PathOption(), metavar="[RUN ...]")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@click.option("--latex", is_flag=True, help="Print a LaTeX table (package booktabs).")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with every score.")
def table(folders: tuple[Path, ...], markdown: bool, latex: bool, as_csv: bool) -> None:
    """Compare the scores of runs, or of the arms of an ablation."""
    if sum((markdown, latex, as_csv)) > 1:
        one, other, *_ = (flag for flag, is_set in zip(FORMATS, (markdown, latex, as_csv), strict=True) if is_set)
        raise click.UsageError(f"{one} and {other} are mutually exclusive")
    headings, rows, records, legend = ablation_table(folders[0]) if is_ablation(folders) else runs_table(folders)
    if as_csv:
        print_csv(records)
    elif latex:
        click.echo(formatting.latex_table(headings, rows))
    elif markdown:
        click.echo(formatting.markdown_table(headings, rows))
    else:
        print_table(headings, rows)
        if legend:
            click.echo(legend)


Content = tuple[list[str], list[list[str]], list[dict[str, Any]], str]
"""Headings and rows to print, records for CSV, and a legend."""


def is_ablation(folders: Sequence[Path]) -> bool:
    """Return whether the folders are one ablation. Raises UsageError for an ablation among other folders."""
    found = [folder for folder in folders if (folder / PLAN).is_file()]
    if found and len(folders) > 1:
        raise click.UsageError(f"{found[0]} is an ablation: pass it as the only folder")
    return bool(found)


def ablation_table(folder: Path) -> Content:
    """Return the table of an ablation, a line per arm."""
    from sddit.ablations.analysis import table as arms
    from sddit.ablations.analysis.results import gather
    from sddit.reports.ablation.phrases import floors_sentence, interval_note

    results = gather(folder)
    headings, rows = arms.cells(results)
    compared = {metric: arms.comparisons(results, metric) for metric in results.plan.metrics}
    notes = " ".join(filter(None, (floors_sentence(results), interval_note(compared))))
    return headings, [list(map(printable, row)) for row in rows], list(arms.records(results)), notes


def runs_table(folders: Sequence[Path]) -> Content:
    """Return the table of runs, a line per run."""
    lines = [line_of(run) for folder in folders or (Path("runs"),) for run in runs_in(folder)]
    headings, rows = cells(lines)
    return headings, rows, [record(line) for line in lines], ""


def runs_in(folder: Path) -> list[Path]:
    """Return the folder itself if it is a run, else the runs in it. Raises SD-T922 if there are none."""
    if (folder / RECIPE).is_file():
        return [folder]
    runs = sorted(path.parent for path in folder.glob(f"*/{RECIPE}"))
    if not runs:
        raise error(
            "SD-T922",
            "no run found",
            where=str(folder),
            got="not a folder" if not folder.is_dir() else f"no {RECIPE} in it or its subfolders",
            expect="a run folder, or the parent of run folders",
            fix="run  sddit-run RECIPE  to train one",
        )
    return runs


def line_of(folder: Path) -> Line:
    """Return the line of a run. A damaged folder gives the line `unreadable` and a warning on stderr."""
    try:
        line = read_line(folder)
        cells([line])  # a value that cannot be printed counts as damage
    except (SdditError, OSError, ValueError, TypeError, LookupError, AttributeError) as fault:
        notice(f"warning: {folder} is unreadable: {reason(fault)}")
        return Line(folder.resolve().name, 0, 0, 0.0, 0.0, {}, unreadable=True)
    return line


def reason(fault: Exception) -> str:
    """Return on one line what is wrong with a folder."""
    if isinstance(fault, SdditError):
        problem = fault.problems[0]
        return f"{problem.code}: {problem.what}: {Path(problem.where).name}: {problem.got}"
    return f"{type(fault).__name__}: {fault}"


def read_line(folder: Path) -> Line:
    """Read a run folder, finished or not."""
    recipe, last = read_json(folder / RECIPE), last_metrics(folder / METRICS)
    scores = read_json(folder / SCORES) if (folder / SCORES).is_file() else {}
    seconds = last.get("seconds", 0.0)
    return Line(
        name=folder.resolve().name,
        steps=int(last.get("step", 0)),
        planned=int(recipe["train"]["steps"]),
        seconds=seconds,
        images_per_second=last.get("images", 0.0) / seconds if seconds else 0.0,
        scores=scores,
    )


def cells(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows, with the scores that at least one run has."""
    wanted = [
        (label, key)
        for label in dict.fromkeys(label for line in lines for label in line.scores)
        for key in SHOWN
        if any(line.scores.get(label, {}).get(key) is not None for line in lines)
    ]
    headings = [
        "run",
        "steps",
        "time",
        *(f"{label.rpartition('/')[2]} {KNOWN_METRICS[key].title}" for label, key in wanted),
    ]
    return headings, [[*name_steps_time(line), *(cell(line, label, key) for label, key in wanted)] for line in lines]


def name_steps_time(line: Line) -> list[str]:
    """Return name, steps (with the planned number if unfinished) and training time."""
    if line.unreadable:
        return [printable(line.name), "unreadable", ""]
    steps = f"{line.steps:,}" if line.steps >= line.planned else f"{line.steps:,} of {line.planned:,}"
    return [printable(line.name), steps, format_duration(line.seconds)]


def cell(line: Line, label: str, key: str) -> str:
    """Return one score; a Frechet distance with its floor, the score of held-out images."""
    scores = line.scores.get(label, {})
    if scores.get(key) is None:
        return ""
    floor = f" (floor {scores['fd_floor']:.3g})" if key == "fd" else ""
    return f"{scores[key]:.4g}{floor}"


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on the console."""
    lines = text_table(*headings)
    for row in rows:
        lines.add_row(*row)
    console().print(lines)


def print_csv(records: Sequence[dict[str, Any]]) -> None:
    """Print CSV with every score of every extractor."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writerow({name: formatting.escape_csv(name) for name in columns})
    writer.writerows({name: formatting.escape_csv(value) for name, value in record.items()} for record in records)


def record(line: Line) -> dict[str, Any]:
    """Return {column: value} of one run; for a damaged one, its name and `unreadable` as its steps."""
    if line.unreadable:
        return {"run": line.name, "steps": "unreadable"}
    return {
        "run": line.name,
        "steps": line.steps,
        "planned": line.planned,
        "seconds": line.seconds,
        "images_per_second": line.images_per_second,
        **{f"{label}.{key}": value for label, scores in line.scores.items() for key, value in metric_values(scores)},
    }
