"""`sddit-run table`: compare the scores of runs, a line per run, or of the arms of an ablation. Imports no torch."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sddit.ablations.planning.records import PLAN
from sddit.cli.options import PathOption, SdditCommand
from sddit.cli.output import notice, print_table
from sddit.data.undecoded import NO_SCORES, are_undecoded, samples_are_undecoded
from sddit.errors import SdditError, error, printable
from sddit.formatting import escape_csv, format_duration, latex_table, markdown_table
from sddit.interfaces.metric_names import KNOWN_METRICS, metric_values
from sddit.storage.atomic import NOT_NUMBERS
from sddit.storage.metrics_log import last_metrics
from sddit.storage.output_folder import read_manifest
from sddit.storage.run_folder import METRICS, RECIPE, SCORES, read_json, unreadable_error
from sddit.storage.run_result import refuse_other_result

if TYPE_CHECKING:
    from sddit.ablations.analysis.results import AblationResults

EXAMPLES = """
sddit-run table                          every run in runs/
sddit-run table runs/dit-* runs/quickstart-*
sddit-run table runs/teacher_noise-0c11d2e4f3a5    the arms of an ablation
sddit-run table --markdown               or --latex
sddit-run table --csv > runs.csv         every score with all digits
"""
SHOWN = ("fd", "class_accuracy", "precision", "recall")
MAX_NAMED = 5  # runs in a notice
RESCORE = "delete it and rerun the run, which then scores again"
UNREADABLE = "unreadable"  # in place of the steps of a damaged folder: only its name is known

Record = Mapping[str, Any]
"""{column: value} of one line, for CSV."""


@click.command("table", cls=SdditCommand, examples=EXAMPLES)
@click.argument("folders", nargs=-1, type=PathOption(), metavar="[RUN ...]")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@click.option("--latex", is_flag=True, help="Print a LaTeX table (package booktabs).")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with every score.")
def table(folders: tuple[Path, ...], markdown: bool, latex: bool, as_csv: bool) -> None:
    """Compare the scores of runs, or of the arms of an ablation."""
    chosen = [flag for flag, is_set in {"--markdown": markdown, "--latex": latex, "--csv": as_csv}.items() if is_set]
    if len(chosen) > 1:
        raise click.UsageError(f"{chosen[0]} and {chosen[1]} are mutually exclusive")
    ablations = [folder for folder in folders if (folder / PLAN).is_file() or is_publication(folder)]
    if ablations and len(folders) > 1:
        raise click.UsageError(f"{ablations[0]} is an ablation: pass it as the only folder")
    if ablations:
        from sddit.ablations.analysis.results import gather
        from sddit.ablations.analysis.table import records as arm_records
        from sddit.cli.ablation_run import results_table

        results = gather(folders[0])
        records: list[Record] = list(arm_records(results))
        headings, rows, notes = results_table(results)
        note_failures(results)
    else:
        records = [read_record(run) for folder in folders or (Path("runs"),) for run in runs_in(folder)]
        (headings, rows), notes = cells(records), []
        note_latents(folders)
    if as_csv:
        columns = list(dict.fromkeys(name for record in records for name in record))
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        for record in (dict(zip(columns, columns, strict=True)), *records):
            writer.writerow({name: escape_csv(value) for name, value in record.items()})
    elif latex:
        click.echo(latex_table(headings, rows))
    elif markdown:
        click.echo(markdown_table(headings, rows))
    else:
        print_table(headings, rows)
        if notes:
            click.echo(" ".join(notes))


def note_latents(folders: Iterable[Path]) -> None:
    """Say which runs have no scores because their samples are latents."""
    runs = [run for folder in folders or (Path("runs"),) for run in runs_in(folder) if samples_are_undecoded(run)]
    if runs:
        names = ", ".join(run.resolve().name for run in runs[:MAX_NAMED])
        more = f" and {len(runs) - MAX_NAMED} more" if len(runs) > MAX_NAMED else ""
        notice(f"no image scores of {printable(names)}{more}: {NO_SCORES}")


def note_failures(results: AblationResults) -> None:
    """Say why failed runs of an ablation have no scores."""
    failed = [run for run in results.runs if run.status == "failed"]
    for run in failed[:MAX_NAMED]:
        notice(f"warning: {printable(run.arm)} seed {run.seed} failed: {printable(run.error)}")
    if len(failed) > MAX_NAMED:
        notice(f"warning: {len(failed) - MAX_NAMED} more runs failed")


def is_publication(folder: Path) -> bool:
    """Return whether a folder has the manifest of a publication, also if this is not complete."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.kind == "publication"


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


def read_record(folder: Path) -> Record:
    """Return the record of a run, finished or not.

    A damaged folder gives its name with `unreadable` as its steps, and a warning on stderr.
    """
    name = folder.resolve().name
    try:
        recipe, last = read_json(folder / RECIPE), last_metrics(folder / METRICS)
        scored = (folder / SCORES).is_file() and not are_undecoded(recipe)
        scores = read_json(folder / SCORES) if scored else {}
        seconds = last.get("seconds", 0.0)
        record = {
            "run": name,
            "steps": int(last.get("step", 0)),
            "planned": int(recipe["train"]["steps"]),
            "seconds": seconds,
            "images_per_second": last.get("images", 0.0) / seconds if seconds else 0.0,
            **read_values(folder / SCORES, scores),
        }
        cells([record])  # a value that cannot be printed counts as damage
        if scored:
            refuse_other_result(folder, SCORES, RESCORE)
        return record
    except (SdditError, OSError, ValueError, TypeError, LookupError, AttributeError) as fault:
        why = f"{type(fault).__name__}: {fault}"
        if isinstance(fault, SdditError):
            problem = fault.problems[0]
            why = f"{problem.code}: {problem.what}: {Path(problem.where).name}: {problem.got}; {problem.fix}"
        notice(f"warning: {folder} is unreadable: {why}")
        return {"run": name, "steps": UNREADABLE}


def read_values(path: Path, scores: Mapping[str, Any]) -> Record:
    """Return each score of `scores.json` by name. Raises SD-F704 for one that is not a number, or has no floor."""
    found = {}
    for label, one in scores.items():
        if not isinstance(one, dict):
            raise unreadable_error(path, f"{label}: {one!r:.40}, not a table of scores", RESCORE)
        for key, value in metric_values(one):
            number = float(value) if isinstance(value, str) and value in NOT_NUMBERS else value
            if key in KNOWN_METRICS and not (number is None or type(number) in (int, float)):
                raise unreadable_error(path, f"{label}.{key}: {value!r:.40}, not a number", RESCORE)
            found[f"{label}.{key}"] = number
        if "fd" in one and f"{label}.fd_floor" not in found:
            raise unreadable_error(path, f"{label}: without fd_floor", RESCORE)
    if names := [name for name, number in found.items() if isinstance(number, float) and not math.isfinite(number)]:
        notice(f"warning: {path} has non-finite scores: {', '.join(names)}; {RESCORE}")
    return found


def cells(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows, with the scores that at least one run has."""
    columns = dict.fromkeys(name for record in records for name, value in record.items() if value is not None)
    labels = dict.fromkeys(name.rpartition(".")[0] for name in columns if "." in name)
    scores = {
        f"{label}.{key}": f"{label.rpartition('/')[2]} {KNOWN_METRICS[key].title}"
        for label in labels
        for key in SHOWN
        if f"{label}.{key}" in columns
    }
    return ["run", "steps", "time", *scores.values()], [row(record, scores) for record in records]


def row(record: Record, scores: Iterable[str]) -> list[str]:
    """Return name, steps (with the planned number if unfinished), training time and scores, each FD with its floor."""
    if record["steps"] == UNREADABLE:
        return [printable(record["run"]), UNREADABLE, "", *("" for _ in scores)]
    steps = f"{record['steps']:,}"
    if record["steps"] < record["planned"]:
        steps += f" of {record['planned']:,}"
    texts = []
    for name in scores:
        text = "" if record.get(name) is None else f"{record[name]:.4g}"
        if text and name.endswith(".fd"):
            text += f" (floor {record[f'{name}_floor']:.3g})"
        texts.append(text)
    return [printable(record["run"]), steps, format_duration(record["seconds"]), *texts]
