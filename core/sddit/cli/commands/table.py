"""`sddit-run table`: the scores of several runs, one line a run; of an ablation, one line an arm. Needs no torch."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sddit import formatting as forms
from sddit.ablations.planning.plan import PLAN
from sddit.cli.common import PathOption, SdditCommand, console, notice
from sddit.cli.common import table as text_table
from sddit.errors import SdditError, error, printable
from sddit.interfaces.metric_names import FIGURES, numbers
from sddit.progress import duration
from sddit.storage.metrics_log import last_metrics
from sddit.storage.run_folder import METRICS, RECIPE, SCORES, read_json

EXAMPLES = """
sddit-run table                          every run in runs/
sddit-run table runs/dit-* runs/quickstart-*
sddit-run table runs/teacher_noise-0c11d2e4f3a5     an ablation, arm by arm
sddit-run table --markdown               or --latex
sddit-run table --csv > runs.csv         every figure, all digits
"""
SHOWN = ("fd", "class_accuracy", "precision", "recall")
FORMS = ("--markdown", "--latex", "--csv")


@dataclass(frozen=True, slots=True)
class Line:
    """One run as the table shows it."""

    name: str
    steps: int
    planned: int
    seconds: float
    images_per_second: float
    scores: dict[str, dict[str, Any]]
    unreadable: bool = False  # its folder is damaged: only the name is known


@click.command("table", cls=SdditCommand, examples=EXAMPLES)
@click.argument("folders", nargs=-1, type=PathOption(), metavar="[RUN ...]")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@click.option("--latex", is_flag=True, help="Print a LaTeX table, for the package booktabs.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with every figure.")
def table(folders: tuple[Path, ...], markdown: bool, latex: bool, as_csv: bool) -> None:
    """Put the scores of runs side by side."""
    if sum((markdown, latex, as_csv)) > 1:
        one, other = (form for form, given in zip(FORMS, (markdown, latex, as_csv), strict=True) if given)
        raise click.UsageError(f"{other} and {one} are two forms: give one of them")
    headings, rows, records, legend = of_ablation(folders[0]) if is_ablation(folders) else of_runs(folders)
    if as_csv:
        print_csv(records)
    elif latex:
        click.echo(forms.latex(headings, rows))
    elif markdown:
        click.echo(forms.markdown(headings, rows))
    else:
        print_table(headings, rows)
        if legend:
            click.echo(legend)


Content = tuple[list[str], list[list[str]], list[dict[str, Any]], str]
"""Headings and rows for a person, records for a program, how to read the rows."""


def is_ablation(folders: Sequence[Path]) -> bool:
    """Whether this is the folder of one ablation."""
    found = [folder for folder in folders if (folder / PLAN).is_file()]
    if found and len(folders) > 1:
        raise click.UsageError(f"{found[0]} is an ablation: give it alone")
    return bool(found)


def of_ablation(folder: Path) -> Content:
    """An arm a line."""
    from sddit.ablations.analysis import table as arms
    from sddit.ablations.analysis.results import gather

    results = gather(folder)
    headings, rows = arms.cells(results)
    compared = {metric: arms.comparisons(results, metric) for metric in results.plan["metrics"]}
    notes = " ".join(filter(None, (arms.floors(results), arms.legend(compared))))
    return headings, [list(map(printable, row)) for row in rows], list(arms.records(results)), notes


def of_runs(folders: Sequence[Path]) -> Content:
    """A run a line."""
    lines = [line_of(run) for folder in folders or (Path("runs"),) for run in runs_in(folder)]
    headings, rows = cells(lines)
    return headings, rows, [record(line) for line in lines], ""


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs in it."""
    if (folder / RECIPE).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{RECIPE}"))
    if not found:
        raise error(
            "SD-T922",
            "no run to show",
            where=str(folder),
            got="no folder" if not folder.is_dir() else f"no {RECIPE} in it or below",
            expect="a run folder, or a folder of them",
            fix="sddit-run RECIPE   makes one",
        )
    return found


def line_of(folder: Path) -> Line:
    """A run's line; that of a damaged folder says so, and what is wrong goes to stderr."""
    try:
        line = read(folder)
        cells([line])  # what cannot be shown is damaged too
    except (SdditError, OSError, ValueError, TypeError, LookupError, AttributeError) as fault:
        notice(f"warning: {folder} is unreadable: {reason(fault)}")
        return Line(folder.resolve().name, 0, 0, 0.0, 0.0, {}, unreadable=True)
    return line


def reason(fault: Exception) -> str:
    """What is wrong with a folder, on one line."""
    if isinstance(fault, SdditError):
        problem = fault.problems[0]
        return f"{problem.code}: {problem.what}: {Path(problem.where).name}: {problem.got}"
    return f"{type(fault).__name__}: {fault}"


def read(folder: Path) -> Line:
    """What a run folder says of itself, finished or not."""
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
    """Headings and rows: only figures that some run has."""
    wanted = [
        (label, key)
        for label in dict.fromkeys(label for line in lines for label in line.scores)
        for key in SHOWN
        if any(line.scores.get(label, {}).get(key) is not None for line in lines)
    ]
    headings = ["run", "steps", "time", *(f"{label.rpartition('/')[2]} {FIGURES[key].title}" for label, key in wanted)]
    return headings, [[*about(line), *(cell(line, label, key) for label, key in wanted)] for line in lines]


def about(line: Line) -> list[str]:
    """Name, steps (of how many, if unfinished) and training time."""
    if line.unreadable:
        return [printable(line.name), "unreadable", ""]
    steps = f"{line.steps:,}" if line.steps >= line.planned else f"{line.steps:,} of {line.planned:,}"
    return [printable(line.name), steps, duration(line.seconds)]


def cell(line: Line, label: str, key: str) -> str:
    """One figure; a distance with the floor that held-out images get."""
    scores = line.scores.get(label, {})
    if scores.get(key) is None:
        return ""
    floor = f" (floor {scores['fd_floor']:.3g})" if key == "fd" else ""
    return f"{scores[key]:.4g}{floor}"


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """For a person."""
    shown = text_table(*headings)
    for row in rows:
        shown.add_row(*row)
    console().print(shown)


def print_csv(records: Sequence[dict[str, Any]]) -> None:
    """For a program: every figure of every extractor."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writerow({name: forms.no_formula(name) for name in columns})
    writer.writerows({name: forms.no_formula(value) for name, value in record.items()} for record in records)


def record(line: Line) -> dict[str, Any]:
    """One run by column; of a damaged one only the name, and `unreadable` for its steps."""
    if line.unreadable:
        return {"run": line.name, "steps": "unreadable"}
    return {
        "run": line.name,
        "steps": line.steps,
        "planned": line.planned,
        "seconds": line.seconds,
        "images_per_second": line.images_per_second,
        **{f"{label}.{key}": value for label, scores in line.scores.items() for key, value in numbers(scores)},
    }
