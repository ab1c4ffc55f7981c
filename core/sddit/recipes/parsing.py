"""Read one recipe file, with size limits, the line of each key, and a location and fix for every mistake."""

from __future__ import annotations

import codecs
import datetime
import json
import math
import os
import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sddit.errors import Problem, SdditError, error, raise_all

MAX_BYTES = 64 * 1024
MAX_RESOLVED_BYTES = 4 * 1024**2  # a resolved recipe also holds the names of all classes
MAX_LINE = 4096  # the time of tomllib grows with the square of one dotted key
MAX_DEPTH = 16
MAX_INTEGER = 2**63 - 1
MAX_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class Source:
    """The tables of one file, and their lines."""

    path: Path
    tables: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)  # dotted key -> line, counted from 1

    def place(self, key: str) -> str:
        """Return `recipes/tiny.toml:14`, the line of a dotted key or of the nearest table around it."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{shown(self.path)}:{self.lines[key]}" if key else shown(self.path)


def shown(path: Path) -> str:
    """Return a path for messages: relative if it is in the current folder."""
    here, full = Path.cwd(), Path(os.path.normpath(path.absolute()))
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(path)


def read(path: Path) -> Source:
    """Read a recipe, or its resolved form (`.json`). Raises SdditError with all that is wrong with the text."""
    where, text = shown(path), _decoded(path)
    if path.suffix == ".json":
        return Source(path, _parse_json(where, text))
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            raise error(
                "SD-R131",
                "a line of the recipe is too long",
                where=f"{where}:{number}",
                got=f"{len(line)} characters",
                expect=f"at most {MAX_LINE}",
            )
    entries = list(scan(text))
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise SdditError(_syntax_problem(where, text, str(failure), entries)) from None
    except RecursionError:
        raise SdditError(_too_deep(where)) from None
    if not tables:
        raise error("SD-R101", "the recipe is empty", where=where, fix="start from a copy of a shipped recipe")
    source = Source(path, tables, {entry.key: entry.line for entry in reversed(entries)})
    raise_all(odd_values(tables, source.place))
    return source


def _decoded(path: Path) -> str:
    """Return the text of a file. Raises SdditError if it is too large, not UTF-8, or holds invisible characters."""
    where = shown(path)
    limit = MAX_RESOLVED_BYTES if path.suffix == ".json" else MAX_BYTES
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as failure:
        fix = "fix its permissions, or pass another path"
        raise error("SD-R121", "the recipe cannot be read", where=where, got=failure.strerror or "", fix=fix) from None
    if len(data) > limit:
        raise error("SD-R131", "the recipe is too large", where=where, got="more", expect=f"at most {limit} bytes")
    data = data.removeprefix(codecs.BOM_UTF8)  # editors of Windows write it
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise error("SD-R132", "the recipe is UTF-16, not UTF-8", where=where, fix="save the file as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as failure:
        line = data[: failure.start].count(b"\n") + 1
        what = f"byte 0x{data[failure.start]:02X} at line {line} is not UTF-8"
        raise error("SD-R132", what, where=f"{where}:{line}", fix="save the file as UTF-8") from None
    for position, character in enumerate(text):
        # NUL, zero-width, bidi and further line breaks make a text look other than it is.
        if unicodedata.category(character) in {"Cc", "Cf", "Zl", "Zp"} and character not in "\t\n\r":
            raise error(
                "SD-R132",
                "the recipe contains an invisible character",
                where=f"{where}:{text.count(chr(10), 0, position) + 1}",
                got=f"U+{ord(character):04X} {unicodedata.name(character, '')}".strip(),
                fix="delete it",
            )
    return text


def _parse_json(where: str, text: str) -> dict[str, Any]:
    try:
        tables = json.loads(text)
    except (ValueError, RecursionError) as failure:
        fix = "restore it from a backup, or use the recipe it was resolved from"
        raise error("SD-R100", "invalid JSON", where=where, got=str(failure), fix=fix) from None
    if not isinstance(tables, dict):
        raise error("SD-R101", "not a resolved recipe", where=where, expect="an object of tables")
    raise_all(odd_values(tables, lambda key: where))
    return tables


def parse_value(text: str, where: str) -> Any:
    """Parse the value of an override as TOML; text that is not valid TOML is returned unchanged.

    Raises SdditError for invalid TOML that starts with a quote or bracket, and for more than one value.
    """
    if len(text) > MAX_LINE:
        got, expect = f"{len(text):,} characters", f"at most {MAX_LINE:,}"
        raise error("SD-R133", "the value of an override is too long", where=where, got=got, expect=expect)
    if "\n" in text or "\r" in text:
        what = "an override is one value on one line"
        raise error("SD-R133", what, where=where, got=quoted(text), fix="write one override for each key")
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except RecursionError:
        raise SdditError(_too_deep(where)) from None
    except tomllib.TOMLDecodeError:
        if text.startswith(('"', "'", "[", "{")):
            fix = "write it as in TOML, inside quotes of the shell: 'key=[1, 2]'"
            raise error("SD-R133", "the value cannot be read", where=where, got=quoted(text), fix=fix) from None
        return text


def _too_deep(where: str) -> Problem:
    return Problem("SD-R131", "the recipe is nested too deep", where, expect=f"at most {MAX_DEPTH} levels")


def odd_values(value: Any, place: Callable[[str], str], path: tuple[str, ...] = ()) -> Iterator[Problem]:
    """Yield the problems of keys and values that TOML allows but recipes do not: dates, inf, nan, huge integers, quoted
    dots.
    """
    key = ".".join(path)
    if len(path) > MAX_DEPTH:
        yield _too_deep(place(key))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _odd_key(name, place(".".join((*path, name))))
            yield from odd_values(inner, place, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from odd_values(inner, place, (*path, str(index)))
    elif isinstance(value, datetime.date | datetime.time):
        got = f"{path[-1]} = {value.isoformat()}"
        yield Problem("SD-R105", f"{key!r} is a date or a time", place(key), got, "a value", "put the text in quotes")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem("SD-R106", f"{key!r} must be finite", place(key), f"{path[-1]} = {value}", "a finite number")
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        got = f"a number of {value.bit_length()} bits"
        yield Problem("SD-R106", f"{key!r} is out of range", place(key), got, "at most 2^63 - 1")


def _odd_key(name: str, where: str) -> Iterator[Problem]:
    if re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+", name):
        what = f"{name!r} is one key with dots in it"
        yield Problem("SD-R102", what, where, f'"{name}"', "a dotted key", f"remove the quotes: {name} = ...")
    elif not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        yield Problem("SD-R132", "a key has letters other than a-z, 0-9, _ and -", where, quoted(name), fix="rename it")


def quoted(value: Any, max_length: int = MAX_SHOWN) -> str:
    """Return a value as TOML writes it, truncated for a message."""
    match value:
        case bool():
            text = str(value).lower()
        case list() | tuple():
            text = f"[{', '.join(quoted(v, max_length) for v in value)}]"
        case {} if not value:
            text = "{}"
        case dict():
            text = f"{{ {', '.join(f'{k} = {quoted(v, max_length)}' for k, v in value.items())} }}"
        case str():
            text = json.dumps(value, ensure_ascii=False)
        case _:
            text = str(value)
    return text if len(text) <= max_length else f"{text[: max_length - 3]}..."


class Entry(NamedTuple):
    """A header or a `key =` line."""

    key: str  # dotted, from the top
    line: int
    kind: Literal["value", "table", "array"]


_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_KEY = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")
_TEXT_OR_COMMENT = re.compile(
    r'''"""[\s\S]*?(?:"""|\Z)|\'\'\'[\s\S]*?(?:\'\'\'|\Z)|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#.*'''
)


def scan(text: str) -> Iterator[Entry]:
    """Yield the headers and `key =` lines of a TOML text, which may be invalid: tomllib keeps no positions."""
    table, depth = "", 0  # depth: open brackets of a value
    bare = _TEXT_OR_COMMENT.sub(lambda found: "\n".join(" " * len(line) for line in found[0].split("\n")), text)
    for number, (line, code) in enumerate(zip(text.split("\n"), bare.split("\n"), strict=True), 1):
        rest = code
        if depth == 0:
            if not code.strip():  # empty, a comment, or within a multi-line text
                continue
            if header := _HEADER.match(line):
                table = _dotted(header[2])
                yield Entry(table, number, "array" if header[1] == "[[" else "table")
                continue
            key = _KEY.match(line)
            if key is None:
                continue
            yield Entry(f"{table}.{_dotted(key[1])}".lstrip("."), number, "value")
            rest = code[key.end() :]
        for bracket in re.findall(r"[][{}]", rest):
            depth = depth + 1 if bracket in "[{" else max(0, depth - 1)


def _dotted(text: str) -> str:
    """Return the key as tomllib returns it, with quotes and escapes resolved where possible."""
    return ".".join(_unquoted(part) for part in re.findall(_PART, text))


def _unquoted(part: str) -> str:
    try:
        return str(tomllib.loads(f"part = {part}")["part"]) if part[0] in "\"'" else part
    except tomllib.TOMLDecodeError:  # an escape that TOML does not have, in a text that cannot be read anyway
        return part[1:-1]


def _syntax_problem(file: str, text: str, message: str, entries: list[Entry]) -> Problem:
    """Return what to fix, from tomllib's message and the text."""
    lines = text.split("\n")
    position = re.search(r"\(at line (\d+), column (\d+)\)", message)
    number, column = (int(position[1]), int(position[2])) if position else (len(lines), 1)
    line = lines[number - 1]
    where, got = f"{file}:{number}", line.strip()

    if text.lstrip().startswith("{"):
        fix = "name the file .json if it is a resolved recipe"
        return Problem("SD-R101", "this looks like JSON; recipes are TOML", file, got, "key = value", fix)
    if re.match(r"\s*(---|- |[\w.-]+\s*:(\s|$))", line):
        return Problem("SD-R101", "this looks like YAML; recipes are TOML", where, got, "key = value")
    if re.match(r"Cannot (overwrite|declare|mutate)|Duplicate inline table key", message):
        return _twice(file, where, got, entries)
    if "key part" in message and "{" in line:
        what = "a line break or a last comma inside { }"
        fix = "use one line without it, or a [table]"
        return Problem("SD-R100", what, where, got, fix=fix)
    value = line.partition("=")[2].partition("#")[0].strip()
    word = re.split(r"[\s=,[{]", line[: column - 1])[-1] + re.split(r"[\s,\]}#]", line[column - 1 :])[0]
    wrong_value = position and re.match(r"Invalid value|Expected newline|Unescaped", message)
    if wrong_value and (fix := correction_of(value) or correction_of(word)):
        return Problem("SD-R105", "a value that is not what it looks like", where, got, fix=fix)
    return Problem("SD-R100", re.sub(r" \(at .*\)", "", message), where, got, "TOML 1.0")


def _twice(file: str, where: str, got: str, entries: list[Entry]) -> Problem:
    """Find the key that is set twice: tomllib does not name it."""
    first: dict[str, Entry] = {}
    for entry in entries:
        earlier = first.setdefault(entry.key, entry)
        if earlier is not entry and {earlier.kind, entry.kind} != {"array"}:
            lines = f"lines {earlier.line} and {entry.line}"
            return Problem("SD-R104", f"{entry.key!r} given twice ({lines})", f"{file}:{entry.line}")
        parents = (entry.key.rsplit(".", n)[0] for n in range(1, entry.key.count(".") + 1))
        for value in (first[p] for p in parents if p in first and first[p].kind == "value"):
            what = f"{value.key!r} is a value on line {value.line} and a table on line {entry.line}"
            return Problem("SD-R104", what, f"{file}:{entry.line}")
    return Problem("SD-R104", "a key or a table is given twice", where, got)


_CORRECTIONS = (
    (r"(?i)true|yes|on", "write true"),
    (r"(?i)false|no|off", "write false"),
    (r"(?i)none|null|nil|~", "remove the key to use its default: TOML has no empty value"),
    (r"(?:\+|(-?))0+(\d+)", r"write \1\2"),
    (r"[+-]?\d+\.", r"write \g<0>0"),
    (r"([+-]?)(\.\d+)", r"write \g<1>0\2"),
    (r"(\d+),(\d+)", r"write \1.\2"),
    (r'(?s)".*\\.*', "write single quotes around a text with backslashes"),
    (r"(?s).*[“”‘’„«»].*", "write straight quotes"),
    (r"(?!\d+$)[\w./~:-]+", r'put the text in quotes: "\g<0>"'),
)
"""Patterns of words that are not TOML values, and how to write them."""


def correction_of(word: str) -> str:
    """Return how to write `word`, which is not a TOML value, or an empty string if that cannot be guessed."""
    for pattern, fix in _CORRECTIONS:
        if found := re.fullmatch(pattern, word):
            return found.expand(fix)
    return ""
