"""`sddit-run table`: the scores of several runs, one line a run. Reads run folders; needs no torch."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sddit.cli import frame
from sddit.errors import SdditError, error, printable
from sddit.progress import duration

EXAMPLES = """
sddit-run table                          every run in runs/
sddit-run table runs/dit-* runs/quickstart-*
sddit-run table --markdown
sddit-run table --csv > runs.csv         every figure, all digits
"""
RECIPE, METRICS, SCORES = "recipe.resolved.json", "metrics.jsonl", "scores.json"
FIGURES = {"fd": "FD", "class_accuracy": "accuracy", "precision": "precision", "recall": "recall"}


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


@click.command("table", cls=frame.Verb, examples=EXAMPLES)
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN ...]")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with every figure.")
def table(folders: tuple[Path, ...], markdown: bool, as_csv: bool) -> None:
    """Put the scores of runs side by side."""
    if markdown and as_csv:
        raise click.UsageError("--csv and --markdown are two forms: give one of them")
    lines = [line_of(run) for folder in folders or (Path("runs"),) for run in runs_in(folder)]
    if as_csv:
        print_csv(lines)
    elif markdown:
        headings, rows = cells(lines)
        for row in (headings, ["---"] * len(headings), *rows):
            click.echo(f"| {' | '.join(row)} |")
    else:
        print_table(lines)


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
        frame.notice(f"warning: {folder} is unreadable: {reason(fault)}")
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
    return Line(
        name=folder.resolve().name,
        steps=int(last.get("step", 0)),
        planned=int(recipe["train"]["steps"]),
        seconds=last.get("seconds", 0.0),
        images_per_second=last.get("images_per_second", 0.0),
        scores=scores,
    )


def read_json(path: Path) -> Any:
    """A JSON file of a run folder."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise error(
            "SD-F704", "a file of the run folder cannot be read", where=str(path), got=str(fault), fix="put a copy back"
        ) from fault


def last_metrics(path: Path) -> dict[str, Any]:
    """The last whole line of the log; nothing before the first."""
    for line in reversed(path.read_text(encoding="utf-8").splitlines() if path.is_file() else []):
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # cut short by a crash
        return found
    return {}


def cells(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: only figures that some run has."""
    wanted = [
        (label, key)
        for label in dict.fromkeys(label for line in lines for label in line.scores)
        for key in FIGURES
        if any(line.scores.get(label, {}).get(key) is not None for line in lines)
    ]
    headings = ["run", "steps", "time", *(f"{label.rpartition('/')[2]} {FIGURES[key]}" for label, key in wanted)]
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


def print_table(lines: Sequence[Line]) -> None:
    """For a person."""
    headings, rows = cells(lines)
    shown = frame.table(*headings)
    for row in rows:
        shown.add_row(*row)
    frame.console().print(shown)


def print_csv(lines: Sequence[Line]) -> None:
    """For a program: every figure of every extractor."""
    records = [record(line) for line in lines]
    columns = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


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
        **{f"{label}.{key}": value for label, scores in line.scores.items() for key, value in scores.items()},
    }
