"""Write docs/errors.md: a page of every error code, from the catalogue, with the faults that the tests provoke.

python tools/errors_page.py
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sddit.cli.commands.explain import EXITS
from sddit.errors import catalogue

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
ROWS = ROOT / "tests" / "catalogue" / "rows.toml"
KINDS = {
    "R": "Recipes and the command line",
    "P": "Plugins and environment",
    "D": "Data",
    "C": "Checkpoints and weights",
    "N": "Numbers",
    "M": "Memory and disk",
    "F": "Files and run folders",
    "X": "Processes",
    "T": "Sampling, evaluation, tables",
}
HEAD = """\
<!-- Written by tools/errors_page.py from core/sddit/catalogue.toml and tests/catalogue/rows.toml. -->
# Errors

Every mistake that a user can fix ends with a short message: what is wrong, where, what was expected, the fix, and a
code. `sddit-run explain CODE` prints the entry of a code, `sddit-run explain` lists all of them. The traceback is in
`crash.log` of the run folder, and `--debug` shows it.

```
error SD-R102: unknown key 'optimizer.lrr'
  where:  command line
  got:    lrr = 1
  expect: one of betas, clip, decay_all, lr, ...   (did you mean 'lr'?)
  fix:    rename the key
  more:   sddit-run explain SD-R102
```
"""

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def page(rows: Rows) -> str:
    """Return the page."""
    parts = [HEAD, *statuses(), *proof(rows)]
    for letter, title in KINDS.items():
        parts.append(f"\n## {title}\n")
        for code, entry in catalogue().items():
            if code[3] == letter:
                parts += of_code(code, entry, rows)
    return "\n".join(parts) + "\n"


def statuses() -> Iterator[str]:
    """Return the table of exit statuses."""
    yield "| exit status | meaning |\n|---|---|"
    yield from (f"| {status} | {meaning} |" for status, meaning in EXITS.items())


def proof(rows: Rows) -> Iterator[str]:
    """Return how many faults are provoked, and the others."""
    faults = [row for several in rows.values() for row in several]
    excluded = [row for row in faults if "not_here" in row or "waits" in row]
    elsewhere = sum("proven_by" in row for row in faults)
    yield (
        f"\nThe failure catalogue, `tests/catalogue/rows.toml`, lists {len(faults)} faults: "
        f"{len(faults) - len(excluded) - elsewhere} are provoked one by one by `tests/catalogue`, which compares "
        f"the message, "
        "the exit status and how the run resumes (bit-identical to an undisturbed run); "
        f"{elsewhere} more have tests of their own. {len(excluded)} cannot happen or do not yet apply:\n"
    )
    yield from (f"- {row['fault']}: {row.get('not_here') or 'waits for ' + row['waits']}" for row in excluded)


def of_code(code: str, entry: Mapping[str, Any], rows: Rows) -> Iterator[str]:
    """Yield one code: its cause, its remedy, and the faults that the tests provoke it with."""
    yield f"### {code}: {entry['title']}\n"
    yield f"{entry['cause']}\n"
    yield f"**What to do.** {entry['remedy']} *Exit status {entry['exit']}.*\n"
    faults = [row["fault"] for several in rows.values() for row in several if row.get("code") == code]
    if faults:
        yield f"Provoked by: {'; '.join(dict.fromkeys(faults))}.\n"


def main() -> None:
    PAGE.write_text(page(tomllib.loads(ROWS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
