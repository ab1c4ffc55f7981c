"""Compare, check and read class names. No torch."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sddit.errors import Problem, error, raise_all
from sddit.storage.atomic import read_file

MAX_PROBLEMS = 5  # shown at once
MAX_SHOWN = 6  # classes that one message lists


def composed(text: str) -> str:
    """Return the text in Unicode's composed form (NFC), in which a letter and its accent are one character."""
    return unicodedata.normalize("NFC", text)


def trimmed(text: str) -> str:
    """Return the composed text without outer spaces and a byte-order mark."""
    return composed(text).strip("\ufeff").strip()


def folded(text: str) -> str:
    """Return the text without case, outer spaces, a byte-order mark and the form of its accents."""
    return composed(trimmed(text).casefold())


def listed(labels: Sequence[int], names: Sequence[str]) -> str:
    """Return the numbers of some classes with their names, for messages."""
    shown = ", ".join(f"#{label} {names[label]!r}" for label in labels[:MAX_SHOWN])
    return shown + (", ..." if len(labels) > MAX_SHOWN else "")


def check_names(names: Sequence[str], *, where: str) -> None:
    """Raise SD-D316 for names that are blank or hold invisible control characters, and warn of similar ones."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        got, expect = f"{names!r:.80}", 'a list of texts, such as ["cat", "dog"]'
        raise error("SD-D316", "class names are not a list of texts", where=where, got=got, expect=expect)
    found = (Problem("SD-D316", what, where, repr(name)[:80], fix=fix) for name, what, fix in _unusable(names))
    raise_all(list(found)[:MAX_PROBLEMS])
    warn_of_similar(names)


def warn_of_similar(names: Sequence[str]) -> None:
    """Warn of classes with one name, or with names that look alike in print."""
    alike = defaultdict(list)
    for label, name in enumerate(names):
        alike[trimmed(name)].append(label)
    if groups := [labels for labels in alike.values() if len(labels) > 1]:
        more = "; ..." if len(groups) > MAX_SHOWN else ""
        shown = "; ".join(listed(labels, names) for labels in groups[:MAX_SHOWN]) + more
        what = "classes with the same name, or with names that differ only in outer spaces or the form of accents"
        warnings.warn(f"{what}: {shown}", stacklevel=3)


def _unusable(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, what is wrong, fix)."""
    for label, name in enumerate(names):
        if not name.strip():
            yield name, f"the name of class {label} is blank", "remove it, or write a name"
        elif bad := [c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c == "\ufeff"]:
            yield name, f"the name of class {label} contains the character U+{ord(bad[0]):04X}", "remove the character"


def read_names(path: Path) -> list[str]:
    """Return the class names of a text file, one on each line.

    A byte-order mark, the ends of lines of any system, outer spaces and blank lines at the end do not belong to a name.
    Raises SD-D316 for a blank line between names, and for a file that cannot be read as UTF-8.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as failure:
        got = failure.strerror or "" if isinstance(failure, OSError) else str(failure)[:80]
        expect, fix = "a text file, one name on each line", "save the names as UTF-8, or correct the path"
        what = "class names cannot be read"
        raise error("SD-D316", what, where=str(path), got=got, expect=expect, fix=fix) from None
    names = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise error("SD-D316", "a file without class names", where=str(path), expect="one name on each line")
    if blank := [number for number, name in enumerate(names, 1) if not name]:
        what, got = "a blank line between class names", f"line {', '.join(map(str, blank[:MAX_SHOWN]))}"
        fix = "remove the line, or write the name of this class"
        raise error("SD-D316", what, where=f"{path}:{blank[0]}", got=got, fix=fix)
    check_names(names, where=str(path))
    return names
