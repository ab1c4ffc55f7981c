"""Choose classes by name or number, by one rule for commands and Python. No torch.

1. A whole number, in Python, is the number of a class, counted from 0.
2. A text is the name that it equals exactly; else the one that it equals in Unicode's composed form (NFC); else without
   outer spaces of the text; else without case and outer spaces on both sides.
3. A text such as `3` or `7-9` is a number or a range of numbers.
4. What has two readings is refused with the numbers of the classes (SD-T924): a name of several classes, a number that
   is also the name of another class, a list that can be divided at its commas in two ways.
5. A text in double quotes is only a name, and `#3` or `#7-9` only a number. Inside quotes, `""` is one quote.
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sddit.data.class_names import composed, folded, listed
from sddit.errors import SdditError, error, one_of

MAX_NUMBERS = 10_000  # in one list

QUOTED = re.compile(r'\s*"((?:[^"]|"")*)"\s*')
NUMBERS = re.compile(r"\s*(#?)([0-9]{1,9})(?:-([0-9]{1,9}))?\s*")


def choose_classes(wanted: Any, names: Sequence[str], *, where: str) -> list[int]:
    """Return the numbers of classes, in the order of `wanted`.

    Args:
        wanted: a list in one text such as `0,cat,7-9`; one number; or a sequence of numbers and texts, each of one name
            or range. The number of classes itself is the null label.
        names: the class names by number.
        where: the option or argument, for messages.

    Raises:
        SdditError: SD-T920 without classes, SD-T904 for an unknown number, SD-T911 for a list that is too long or a
            reversed range, SD-T921 for an unknown name, SD-T924 for two readings, SD-T925 for anything else.
    """
    choice = _Choice(tuple(names), where)
    if isinstance(wanted, str):
        return choice.of_list(wanted)
    chosen: list[int] = []
    for item in choice.items(wanted):
        chosen += choice.of_text(item, item) if isinstance(item, str) else [choice.of_number(item)]
        choice.refuse_long(len(chosen))
    if not chosen:
        raise error("SD-T925", "no class is chosen", where=where, got=f"{wanted!r:.80}", expect="at least one class")
    return chosen


class _Choice:
    """The names of a data set, and the option or argument that chooses from them."""

    def __init__(self, names: tuple[str, ...], where: str) -> None:
        self.names = names
        self.where = where
        self.forms = _forms(names)

    def items(self, wanted: Any) -> Iterator[Any]:
        """Yield the items of a sequence, or one number."""
        if isinstance(wanted, (bytes, bytearray)):
            raise self.not_a_class(wanted)
        if not getattr(wanted, "ndim", None) and hasattr(wanted, "__index__"):
            yield wanted
            return
        try:
            yield from wanted
        except TypeError:
            raise self.not_a_class(wanted) from None

    def of_number(self, item: Any) -> int:
        """Return a whole number of Python, NumPy or PyTorch that is a class number or the null label."""
        try:
            if isinstance(item, bool) or "bool" in str(getattr(item, "dtype", "")) or getattr(item, "ndim", None):
                raise TypeError
            number = operator.index(item)
        except TypeError:
            raise self.not_a_class(item) from None
        if not 0 <= number <= len(self.names):
            raise self.unknown_number(number, str(number))
        return number

    def of_list(self, text: str) -> list[int]:
        """Return the classes of a list such as `0,cat,7-9`. A name may hold commas if only one reading is possible."""
        if not self.names:
            raise error("SD-T920", "the run has no classes", where=self.where, got=text, fix=f"remove {self.where}")
        parts = list(_parts(text))
        self.refuse_long(len(parts))
        ways, first = self._ways(parts)
        if ways[0] > 1:
            what, fix = "the list can be read in two ways", """write each name in double quotes: '"one, two",three'"""
            raise error("SD-T924", what, where=self.where, got=text, fix=fix)
        chosen: list[int] = []
        place = 0
        while place < len(parts):
            size = first[place] if ways[0] else 1
            chosen += self.of_text(",".join(parts[place : place + size]), text)
            self.refuse_long(len(chosen))
            place += size
        return chosen

    def _ways(self, parts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return in how many ways the parts from each place on are names and numbers, and the size of the first."""
        longest = 1 + max(name.count(",") for name in self.names)
        ways, first = [0] * len(parts) + [1], [1] * len(parts)
        for place in reversed(range(len(parts))):
            for size in range(1, min(longest, len(parts) - place) + 1):
                text = ",".join(parts[place : place + size])
                if ways[place + size] and (self.named(text) or (size == 1 and self._readable(text))):
                    ways[place], first[place] = ways[place] + ways[place + size], size
        return ways, first

    def _readable(self, part: str) -> bool:
        match = NUMBERS.fullmatch(part)
        return bool(QUOTED.fullmatch(part) or (match and int(match[3] or match[2]) < len(self.names)))

    def of_text(self, part: str, text: str) -> list[int]:
        """Return the classes of one name, number or range, a part of `text`."""
        exact = part in self.forms[0]
        if (quoted := QUOTED.fullmatch(part)) and not exact:
            return self.of_name(quoted[1].replace('""', '"'), text)
        match = NUMBERS.fullmatch(part)
        if match is None:
            return self.of_name(part, text)
        numbers = self._range(match, text)
        others = {label for label in self.named(part) if numbers != [label]}
        if not match[1]:
            others |= {label for n in numbers or () for label in _numbered(self.names).get(n, ()) if label != n}
        if numbers is None:
            if others:
                return self.of_name(part, text)
            raise self.unknown_number(int(match[3] or match[2]), text)
        if others:
            raise self._also_named(part.strip(), sorted({*numbers, *others}), text)
        return numbers

    def _also_named(self, part: str, labels: list[int], text: str) -> SdditError:
        """Return the error SD-T924 of a number or range that is also the name of another class."""
        plain = part.lstrip("#")
        what = f"{part} is a class number and the name of another class"
        expect = f"""#{plain} for the number, '"{part}"' for the name"""
        if "-" in plain and part not in self.forms[0]:
            what = f"the range {part} contains numbers that are also names of other classes"
            expect = f"#{plain} for the numbers, names in double quotes"
        fix = f"choose among {listed(labels, self.names)}"
        return error("SD-T924", what, where=self.where, got=text, expect=expect, fix=fix)

    def _range(self, match: re.Match[str], text: str) -> list[int] | None:
        """Return the numbers of `3` or `7-9`, or None if one of them is not a class."""
        first, last = int(match[2]), int(match[3] or match[2])
        if last < first and not self.named(match[0]):
            what, fix = f"the range {match[0].strip()} is reversed", f"{self.where} {last}-{first}"
            raise error("SD-T911", what, where=self.where, got=text, expect="the lower number first", fix=fix)
        return list(range(first, last + 1)) if first <= last < len(self.names) else None

    def of_name(self, part: str, text: str) -> list[int]:
        """Return the class of a name. Raises SD-T921 if there is none, SD-T924 if there are several."""
        found = self.named(part)
        if len(found) == 1:
            return found
        if found:
            fix = f"give the number: #{found[0]}" + ("" if part in self.forms[0] else ", or the exact name")
            what, expect = f"{part.strip()!r} stands for {len(found)} classes", f"one of {listed(found, self.names)}"
            raise error("SD-T924", what, where=self.where, got=text, expect=expect, fix=fix)
        expect = f"numbers such as 0,3,7-9, or {one_of(part.strip(), self.names)}"
        fix = "write a name with commas in double quotes" if any("," in name for name in self.names) else ""
        what = f"{part.strip()!r} is not valid here"
        raise error("SD-T921", what, where=self.where, got=text, expect=expect, fix=fix)

    def named(self, text: str) -> list[int]:
        """Return the classes of the first form in which a name equals the text."""
        exact, nfc, fold = self.forms
        tries = ((exact, text), (nfc, composed(text)), (nfc, composed(text.strip())), (fold, folded(text)))
        return next((found for form, key in tries if (found := form.get(key))), [])

    def unknown_number(self, number: int, text: str) -> SdditError:
        """Return the error SD-T904."""
        highest = len(self.names) - 1
        expect = f"0 to {highest}, or a name" if self.names else "0, which samples without a class"
        return error("SD-T904", f"class {number} does not exist", where=self.where, got=text, expect=expect)

    def not_a_class(self, item: Any) -> SdditError:
        """Return the error SD-T925 of something that is neither a number nor a text."""
        got = f"{item!r:.80} ({type(item).__name__})"
        return error(
            "SD-T925", "not a class", where=self.where, got=got, expect="class numbers or names, as [0, 'cat']"
        )

    def refuse_long(self, count: int) -> None:
        """Raise SD-T911 for more than MAX_NUMBERS classes."""
        if count > MAX_NUMBERS:
            expect = f"at most {MAX_NUMBERS:,} numbers"
            raise error("SD-T911", "the list is too long", where=self.where, got=f"{count:,} or more", expect=expect)


@lru_cache(maxsize=8)
def _forms(names: tuple[str, ...]) -> tuple[Mapping[str, list[int]], ...]:
    """Return {name: class numbers} for exact names, composed ones, and those without case and outer spaces."""
    forms: tuple[defaultdict[str, list[int]], ...] = (defaultdict(list), defaultdict(list), defaultdict(list))
    for label, name in enumerate(names):
        for form, key in zip(forms, (name, composed(name), folded(name)), strict=True):
            form[key].append(label)
    return tuple(dict(form) for form in forms)


@lru_cache(maxsize=8)
def _numbered(names: tuple[str, ...]) -> Mapping[int, list[int]]:
    """Return {number: classes whose name is this number}, also with leading zeros."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for label, name in enumerate(names):
        if re.fullmatch(r"\s*[0-9]{1,9}\s*", name):
            found[int(name)].append(label)
    return dict(found)


def _parts(text: str) -> Iterator[str]:
    """Split a list at its commas, except inside double quotes around a part."""
    place = 0
    while place <= len(text):
        quoted = QUOTED.match(text, place)
        end = quoted.end() if quoted else -1
        if end < 0 or text[end : end + 1] not in ("", ","):
            end = text.find(",", place)
        end = len(text) if end < 0 else end
        yield text[place:end]
        place = end + 1
