#!/usr/bin/env python3
"""Measure reliability: store the figures in docs/reliability.json and write docs/reliability.md from them.

    python tools/reliability.py                 every check at full size: about 40 minutes; resumes where it was stopped
    python tools/reliability.py --quick         every check with small numbers, marked as such in the page
    python tools/reliability.py --only stops    one check again; the others are kept
    python tools/reliability.py --page          measure nothing, write the page again

A check is a command that can also be run by hand. Its figures are the last line that it prints, as JSON, or taken from
pytest's junit file: how many cases passed, and each `record_property`. Figures of the same sources are not measured
again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
STORE = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
SOURCES = ("core", "plugins", "recipes")
"""Folders whose changes make figures outdated."""

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One command, and the text about its figures. Texts name figures in braces, as `str.format` does."""

    name: str
    command: str  # run in the root of the checkout; $SCRATCH is an empty folder, {size} the size
    rows: Sequence[tuple[str, str, str]]  # figure, measured, of how many
    shows: str  # what the figures show and do not show
    full: int = 0  # size at which it is published; 0: there is only one size
    quick: int = 0

    def line(self, quick: bool) -> str:
        """Return the command line."""
        return self.command.format(size=self.quick if quick else self.full)


def soak(option: str) -> str:
    return f"python tools/soak.py --{option} {{size}}"


def tests(*files: str) -> str:
    return f"python -m pytest -q {' '.join(f'tests/{file}' for file in files)} --junitxml=$SCRATCH/junit.xml"


CHECKS = (
    Check(
        "writer-kills",
        soak("writer-kills"),
        [
            ("kills after which a checkpoint was broken", "{broken}", "{kills} kills"),
            ("kills after which an acknowledged checkpoint was gone", "{lost}", "{kills} kills"),
        ],
        "A process saves one checkpoint after another, half of them in the background while training continues, "
        "and receives SIGKILL shortly after a save, {kills} times in one folder. After each kill every visible "
        "checkpoint is compared with what was written, by code that is not the writer's. {checkpoints} saves "
        "were acknowledged. With 95 % confidence fewer than {bound[broken/kills]} of such kills break a "
        "checkpoint. A kill keeps the system's page cache intact, so this does not show safety against power "
        "loss, which relies on the order of sync and rename and on hashes that are compared at every start.",
        full=1000,
        quick=50,
    ),
    Check(
        "naive-writer",
        soak("naive-kills"),
        [("control: kills that broke a naive writer", "{broken}", "{kills} kills")],
        "The same kills of a writer that creates a folder and writes its files in place. If they broke nothing, "
        "the figures above would come from kills that hit nothing.",
        full=100,
        quick=50,
    ),
    Check(
        "run-kills",
        soak("run-kills"),
        [
            ("kills of a training run that broke a checkpoint", "{broken}", "{kills} kills"),
            ("kills after which the newest checkpoint was older than before", "{lost}", "{kills} kills"),
            ("final weights, samples and log identical to an uninterrupted run", "{same}", "{compared} comparisons"),
        ],
        "The quickstart, made smaller, receives SIGKILL while it starts, trains, saves, samples and scores, and "
        "the same command resumes it each time; at its end it is compared with an uninterrupted run. With 95 % "
        "confidence fewer than {bound[broken/kills]} of such kills break a checkpoint. One recipe on one "
        "process: for all methods see the resume points below.",
        full=100,
        quick=6,
    ),
    Check(
        "stops",
        soak("stops"),
        [
            ("runs stopped by SIGTERM with everything saved", "{saved}", "{stops} signals"),
            ("seconds from SIGTERM to exit, median", "{median_seconds:.2f}", "{stops} signals"),
            ("seconds from SIGTERM to exit, maximum", "{largest_seconds:.2f}", "{stops} signals"),
        ],
        "The same small run is stopped by SIGTERM at random moments and resumed. Saved means exit status 143, "
        "and the last logged step is in the newest checkpoint. The seconds include the rest of a step "
        "({milliseconds_per_step:.0f} ms here), a save, and the end of the process. Larger models take longer "
        "steps and saves. Signals during start-up or scoring are tested, but not timed.",
        full=200,
        quick=10,
    ),
    Check(
        "damaged-files",
        "sddit-run recipes/quickstart.toml train.steps=4 train.batch=4 train.save_every=2 train.log_every=1 "
        "optimizer.warmup=0 evaluate.samples=4 'evaluate.features=[]' evaluate.previews=1 evaluate.per_class=1 "
        "sampler.steps=2 backbone.depth=1 backbone.width=8 backbone.heads=1 backbone.decoder.depth=1 "
        "backbone.decoder.width=8 backbone.decoder.heads=1 loss.discrimination.prototypes=8 --out $SCRATCH && "
        "python tools/fuzz_files.py $SCRATCH/quickstart-* --each {size}",
        [
            (
                "silent damages: undetected, and with an effect",
                "{silent}",
                "{damages} damages",
            ),
            ("damages that ended in a traceback", "{traceback}", "{damages} damages"),
            ("damages detected", "{caught}", "{damages} damages"),
            ("damages without effect on weights, settings or a resumed run", "{no effect}", "{damages} damages"),
        ],
        "Bits are flipped in, and bytes cut off, every file of a run folder and of an exported one, and the "
        "folder is then read as all commands do. With 95 % confidence fewer than {bound[silent/damages]} of such "
        "damages are silent. Damage without effect is in files from which no command takes weights, settings or "
        "the state of a run, or that are rewritten; the table lists these files. What commands print is not "
        "compared: a flipped digit of a score or of a log line shows up as another figure in a table, without a "
        "warning.",
        full=25,
        quick=4,
    ),
    Check(
        "mutated-recipes",
        "python tools/fuzz_recipes.py --most {size}",
        [
            (
                "mutants of shipped recipes refused before the first step, naming the key",
                "{refused by name}",
                "{mutants} mutants",
            ),
            ("mutants that gave a traceback", "{tracebacks}", "{mutants} mutants"),
            ("milliseconds to a verdict, median", "{ms to verdict, median:.0f}", "{mutants} mutants"),
        ],
        "Every key of every shipped recipe is misspelt by one edit, set to a value of a wrong type or out of "
        "bounds, or moved to another table. With 95 % confidence fewer than {bound[tracebacks/mutants]} of such "
        "mutants give a traceback. A wrong value within its bounds is a valid recipe and cannot be refused.",
        full=30_000,
        quick=300,
    ),
    Check(
        "resume",
        tests("test_resume.py"),
        [
            (
                "resume points that end in the same bits and log",
                "{exact resume points[sum]:.0f}",
                "{resume points[sum]:.0f} resume points",
            ),
            (
                "items of the state whose absence is detected",
                "{test_each_item_of_the_state_is_needed[passed]}",
                "{test_each_item_of_the_state_is_needed[cases]} items",
            ),
        ],
        "Every method and loss is stopped after each step of a short run, rebuilt in a new session and resumed, "
        "and every tensor and every log line is compared with an uninterrupted run. The controls remove one item "
        "from the checkpoint, and the comparison must then fail. On a CPU with one thread; other hardware, or "
        "another version of torch, gives other numbers.",
    ),
    Check(
        "world-size",
        tests("plugins/test_distribution.py", "core/distributed/test_world.py"),
        [
            (
                "largest relative drift of any tensor between one and two processes",
                "{drift[max]:.1e}",
                "{drift[cases]} cases",
            ),
            (
                "control: smallest drift of a run with a fault on its ranks",
                "{drift of a spoilt run[min]:.1e}",
                "{drift of a spoilt run[cases]} cases",
            ),
        ],
        "The same recipe in float64, ten steps on one process and on two: the worst of all weights, EMAs, "
        "teachers and moments, over every method and the settings that change how gradients are computed. In "
        "float32 sums are rounded in another order, and larger drift is to be expected. Two processes on one "
        "machine: this shows nothing about more processes or GPUs.",
    ),
    Check(
        "non-finite",
        tests("core/training/test_nonfinite.py"),
        [
            (
                "non-finite values that reached a weight, moment, EMA, teacher or centre",
                "{test_nothing_that_lasts_is_changed[failed]}",
                "{test_nothing_that_lasts_is_changed[cases]} injected",
            ),
            (
                "skipped steps that changed any state",
                "{test_a_step_may_be_skipped_and_is_counted[failed]}",
                "{test_a_step_may_be_skipped_and_is_counted[cases]} injected",
            ),
            (
                "control: runs that are corrupted without the check",
                "{test_without_the_guard_it_would_last[passed]}",
                "{test_without_the_guard_it_would_last[cases]} injected",
            ),
        ],
        "A NaN, an infinity or its negative is put into the loss, the gradient, an image, the teacher and what a "
        "loss stages for its statistics. These are where one can arise; a number that is finite and wrong is not "
        "detected by this.",
    ),
    Check(
        "catalogue",
        tests("catalogue"),
        [
            (
                "faults that end as documented",
                "{test_a_fault_ends_as_documented[passed]}",
                "{test_a_fault_ends_as_documented[cases]} faults",
            ),
            ("tracebacks shown", "{tracebacks[sum]:.0f}", "{test_a_fault_ends_as_documented[cases]} faults"),
        ],
        "Each fault of the catalogue is provoked; message, code, exit status and remedy are compared, and the "
        "resumed run must end in the bits of an undisturbed one. {proven_by[sum]:.0f} more have tests of their "
        "own, which are not counted here. The catalogue holds the faults that we thought of. What each looks "
        "like: [Errors](errors.md).",
    ),
    Check(
        "steps",
        soak("steps"),
        [
            ("growth of memory per 1000 steps, MiB", "{mebibytes_per_1000_steps:.2f}", "{steps} steps"),
            (
                "drift of processor time per step per 1000 steps, %",
                "{drift_percent_per_1000_steps:.2f}",
                "{steps} steps",
            ),
        ],
        "One run of the quickstart, made smaller, with saves, previews and scores. Lines are fitted after the "
        "first tenth; at the end the process held {mebibytes:.0f} MiB, and a step took "
        "{milliseconds_per_step:.0f} ms of processor time. Allocators take memory in large blocks, which "
        "dominate the slope of a short run.",
        full=20_000,
        quick=300,
    ),
    Check(
        "offline",
        tests("test_security.py"),
        [
            ("network calls", "{network calls[sum]:.0f}", "{commands[sum]:.0f} commands"),
            ("processes started", "{processes[sum]:.0f}", "{commands[sum]:.0f} commands"),
            (
                "files written outside the working folder",
                "{files elsewhere[sum]:.0f}",
                "{commands[sum]:.0f} commands",
            ),
            ("plugins run without being named", "{foreign imports[sum]:.0f}", "{commands[sum]:.0f} commands"),
        ],
        "A run and then every command of the command line, in a process that a Python audit hook watches, with "
        "plugins installed and present in the folder that leave a mark when they are imported; controls show "
        "that the hook and the marks work. What a library does in C without notifying Python is not seen.",
    ),
)


def measure(check: Check, quick: bool) -> dict[str, Any]:
    """Run the command of a check, show its output, and return its figures with machine, date and commit."""
    quick = quick and check.full > 0
    began, last = time.monotonic(), ""
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        process = subprocess.Popen(
            ["bash", "-c", check.line(quick)],
            cwd=ROOT,
            env={**os.environ, "SCRATCH": scratch, "PATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for last in process.stdout:
            print(f"    {last}", end="", flush=True)
        status = process.wait()
        junit = Path(scratch, "junit.xml")
        if not junit.is_file() and not last.startswith("{"):
            raise SystemExit(f"{check.name} printed no figures: exit status {status}")
        figures = of_tests(junit) if junit.is_file() else of_line(last)
    return {
        "figures": figures,
        "quick": quick,
        "exit": status,
        "seconds": round(time.monotonic() - began),
        "date": datetime.now(UTC).date().isoformat(),
        "source": source(),
        "machine": machine(),
    }


def of_line(line: str) -> dict[str, Any]:
    """Return the figures of a tool, summed over its files or comparisons."""
    found = json.loads(line)
    if "mutants" in found:
        return dict(found)
    if "run folder" in found:
        return of_damages(found)
    (figures,) = found.values()
    same = [value for name, value in figures.items() if name.startswith("same_")]
    return {**figures, "same": sum(same), "compared": len(same)}


def of_damages(folders: Mapping[str, Any]) -> dict[str, Any]:
    """Count damages by verdict, and by kind of file: checkpoints of two steps hold the same kinds."""
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(VERDICTS, 0))
    for place, found in folders.items():
        for file, verdicts in found["by file"].items():
            for verdict, count in verdicts.items():
                kinds[f"{place}: {Path(file).name}"][verdict] += count
    totals = {verdict: sum(kind[verdict] for kind in kinds.values()) for verdict in VERDICTS}
    return {"damages": sum(totals.values()), **totals, "kinds": kinds}


VERDICTS = ("caught", "no effect", "silent", "traceback")


def of_tests(junit: Path) -> dict[str, Any]:
    """Count passed and failed cases per test; for each recorded property return count, sum, minimum and maximum."""
    passed: dict[str, list[bool]] = defaultdict(list)
    handed: dict[str, list[float]] = defaultdict(list)
    for case in ElementTree.parse(junit).iter("testcase"):
        if case.find("skipped") is None:
            good = case.find("failure") is None and case.find("error") is None
            passed[case.get("name", "").partition("[")[0]].append(good)
        for found in case.iter("property"):
            handed[found.get("name", "")].append(float(found.get("value", "")))
    counts = {name: {"cases": len(p), "passed": sum(p), "failed": len(p) - sum(p)} for name, p in passed.items()}
    values = {
        name: {"cases": len(v), "sum": sum(v), "min": min(v), "max": max(v)} for name, v in sorted(handed.items())
    }
    return counts | values


def source() -> str:
    """Return the commit that last changed the measured sources, with a + for uncommitted changes."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.check_output([*git, "log", "-1", "--format=%h", "--", *SOURCES], text=True).strip()
    changed = subprocess.check_output([*git, "status", "--porcelain", "--", *SOURCES], text=True)
    return commit + ("+" if changed else "")


def machine() -> str:
    """Describe this machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("sddit", "torch", "numpy"))
    cores = len(os.sched_getaffinity(0))
    return (
        f"{model}, {cores} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}, {versions}"
    )


def is_kept(stored: Mapping[str, Any] | None, quick: bool, now: str) -> bool:
    """Return whether a stored result is still valid: successful, of the same sources, and at this size or larger."""
    return stored is not None and stored["source"] == now and stored["exit"] == 0 and (quick or not stored["quick"])


def expected(check: Check, stored: Mapping[str, Any] | None, quick: bool) -> str:
    """Estimate how long a check will take, from its last run."""
    if stored is None:
        return "not known yet"
    size, before = (check.quick if q else check.full for q in (quick, stored["quick"]))
    return f"about {stored['seconds'] * (size / before if before else 1) / 60:.0f} min"


HEAD = """\
<!-- Written by tools/reliability.py from docs/reliability.json, which it measures. -->
# Reliability, measured

`python tools/reliability.py` measures all of these figures and writes this page; `--only NAME` measures one again.
Below the table, each figure has its command, which can be run by hand in a checkout (`$SCRATCH` is an empty folder),
and a note on what it shows and does not show.
"""
QUICK = """\
**Figures marked "quick" come from small numbers**, to show that the check runs.
"""


def page(stored: Mapping[str, Any]) -> str:
    """Return the page as Markdown."""
    done = [(check, stored[check.name]) for check in CHECKS if check.name in stored]
    parts = [HEAD, *[QUICK] * any(found["quick"] for _, found in done), *table(done)]
    missing = [check.name for check in CHECKS if check.name not in stored]
    if missing:
        parts.append(f"\nNot measured yet: {', '.join(missing)}.")
    for check, found in done:
        parts += section(check, found)
    parts.append("\n## Machine")
    for place in dict.fromkeys(found["machine"] for _, found in done):
        names = ", ".join(check.name for check, found in done if found["machine"] == place)
        parts.append(f"\n{place}: {names}.")
    return "\n".join(parts) + "\n"


def table(done: Sequence[tuple[Check, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield the table of all figures, each with the name of its check."""
    yield "| figure | measured | of how many | `tools/reliability.py` |\n|---|---|---|---|"
    for check, found in done:
        link = f"[`--only {check.name}`](#{check.name})"
        for row in check.rows:
            figure, measured, count = (fill_in(text, found["figures"]) for text in row)
            yield f"| {figure} | {measured}{' (quick)' if found['quick'] else ''} | {count} | {link} |"


def section(check: Check, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section of one check: its command and what its figures show."""
    yield f"\n## {check.name}\n\n```bash\n{check.line(found['quick'])}\n```\n"
    yield f"{fill(fill_in(check.shows, found['figures']), 120)}\n"
    yield from kinds(found["figures"])
    failed = "" if found["exit"] == 0 else f" **The command failed with status {found['exit']}.**"
    yield f"*{found['date']}, {found['seconds']} s, sources of {found['source']}.*{failed}"


def kinds(figures: Figures) -> Iterator[str]:
    """Yield the table of damages by kind of file, if there is one."""
    if "kinds" in figures:
        yield f"| file | {' | '.join(VERDICTS)} |\n|---{'|---' * len(VERDICTS)}|"
        for kind, counts in sorted(figures["kinds"].items()):
            yield f"| {kind} | {' | '.join(str(counts[verdict]) for verdict in VERDICTS)} |"
        yield ""


class Bounds:
    """Format `{bound[broken/kills]}` as the upper bound of that rate."""

    def __init__(self, figures: Figures) -> None:
        self.figures = figures

    def __getitem__(self, rate: str) -> str:
        failures, _, trials = rate.partition("/")
        return f"{100 * upper_bound(self.figures[failures], self.figures[trials]):.2g} %"


def fill_in(text: str, figures: Figures) -> str:
    """Return the text with its figures filled in."""
    return text.format_map({**figures, "bound": Bounds(figures)})


def upper_bound(failures: int, trials: int, confidence: float = 0.95) -> float:
    """Return the upper confidence bound of a failure rate (Clopper and Pearson)."""
    if failures >= trials:
        return 1.0
    low, high = failures / trials, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        as_few = sum(binomial(k, trials, rate) for k in range(failures + 1))
        low, high = (rate, high) if as_few > 1 - confidence else (low, rate)
    return high


def binomial(k: int, n: int, rate: float) -> float:
    """Return the binomial probability of k in n."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(rate) + (n - k) * math.log1p(-rate))


def load() -> dict[str, Any]:
    """Return the stored results."""
    found: dict[str, Any] = json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else {}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [check.name for check in CHECKS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="small numbers")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    given = parser.parse_args()
    stored = load()
    chosen = [check for check in CHECKS if check.name in (given.only or names) and not given.page]
    if not given.only:
        chosen = [check for check in chosen if not is_kept(stored.get(check.name), given.quick, source())]
    for number, check in enumerate(chosen, 1):
        takes = expected(check, stored.get(check.name), given.quick)
        print(f"{number} of {len(chosen)}, {check.name} ({takes}): {check.line(given.quick)}", flush=True)
        found = measure(check, given.quick)
        stored = load() | {check.name: found}  # another check may have been measured in the meantime
        try:
            text = page(stored)
        except KeyError as figure:
            raise SystemExit(f"{check.name} measured no {figure}: exit status {found['exit']}") from None
        STORE.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        PAGE.write_text(text, encoding="utf-8")
    if given.page:
        PAGE.write_text(page(stored), encoding="utf-8")
    return 1 if any(stored[check.name]["exit"] for check in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
