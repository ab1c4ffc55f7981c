"""Large numbers in few letters, for tables."""

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
