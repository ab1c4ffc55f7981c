"""Numbers as people read them: large ones in few letters, and how many there are of what."""

from __future__ import annotations

PREFIXES = ("", "k", "M", "G", "T", "P", "E")
UNKNOWN = "not stated"


def big(number: float | None, unit: str = "") -> str:
    """`490 k`, `6.8 G`, `84 MB`: three digits."""
    if number is None:
        return UNKNOWN
    size, step = float(number), 0
    while size >= 999.5 and step < len(PREFIXES) - 1:
        size, step = size / 1000, step + 1
    return f"{size:.3g} {PREFIXES[step]}{unit}".rstrip()


def count(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
