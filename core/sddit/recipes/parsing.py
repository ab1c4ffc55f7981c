"""Read one recipe file, with size limits, the line of each key, and a location and fix for every mistake."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sddit.errors import Problem, SdditError, error, raise_all

MAX_BYTES = 64 * 1024
MAX_RESOLVED_BYTES = 4 * 1024**2  # a resolved recipe also holds the names of all classes
MAX_LINE = 4096  # the time of tomllib grows with the square of one dotted key
MAX_DEPTH = 16
MAX_INTEGER = 2**63 - 1
IN_RANGE = "at most 2^63 - 1"
ONE_VALUE = "write one override for each key"


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
    text = _decoded(path)
    if path.suffix == ".json":
        return Source(path, _parse_json(path, text))
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            raise error(
                "SD-R131",
                "a line of the recipe is too long",
                where=f"{shown(path)}:{number}",
                got=f"{len(line)} characters",
                expect=f"at most {MAX_LINE}",
            )
    entries = list(scan(text))
    source = Source(path, _parse_toml(path, text, entries), {entry.key: entry.line for entry in reversed(entries)})
    if not source.tables:
        raise error("SD-R101", "the recipe is empty", where=shown(path), fix="start from a copy of a shipped recipe")
    raise_all(odd_values(source.tables, source.place))
    return source


def _decoded(path: Path) -> str:
    most = MAX_RESOLVED_BYTES if path.suffix == ".json" else MAX_BYTES
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as failure:
        raise error(
            "SD-R121",
            "the recipe cannot be read",
            where=shown(path),
            got=failure.strerror or "",
            fix="fix its permissions, or pass another path",
        ) from None
    if len(data) > most:
        raise error("SD-R131", "the recipe is too large", where=shown(path), got="more", expect=f"at most {most} bytes")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise error("SD-R132", "the recipe starts with a byte-order mark", where=shown(path), fix="save as plain UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as failure:
        line = data[: failure.start].count(b"\n") + 1
        what = f"byte 0x{data[failure.start]:02X} at line {line} is not UTF-8"
        raise error("SD-R132", what, where=f"{shown(path)}:{line}", fix="save the file as UTF-8") from None
    _refuse_hidden(path, text)
    return text


def _refuse_hidden(path: Path, text: str) -> None:
    """Refuse characters that make a text look other than it is: NUL, zero-width, bidi and further line breaks."""
    for position, character in enumerate(text):
        if unicodedata.category(character) in {"Cc", "Cf", "Zl", "Zp"} and character not in "\t\n\r":
            raise error(
                "SD-R132",
                "the recipe contains an invisible character",
                where=f"{shown(path)}:{text.count(chr(10), 0, position) + 1}",
                got=f"U+{ord(character):04X} {unicodedata.name(character, '')}".strip(),
                fix="delete it",
            )


def _parse_json(path: Path, text: str) -> dict[str, Any]:
    try:
        tables = json.loads(text)
    except (ValueError, RecursionError) as failure:
        raise error(
            "SD-R100",
            "invalid JSON",
            where=shown(path),
            got=str(failure),
            fix="restore it from a backup, or use the recipe it was resolved from",
        ) from None
    if not isinstance(tables, dict):
        raise error("SD-R101", "not a resolved recipe", where=shown(path), expect="an object of tables")
    raise_all(odd_values(tables, lambda key: shown(path)))
    return tables


def _parse_toml(path: Path, text: str, entries: list[Entry]) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise SdditError(_syntax_problem(shown(path), text, str(failure), entries)) from None
    except RecursionError:
        raise _too_deep(shown(path)) from None
    except ValueError as failure:  # an integer of more digits than Python reads
        raise error(
            "SD-R106", "a number is out of range", where=shown(path), got=str(failure), expect=IN_RANGE
        ) from None


def parse_value(text: str, where: str) -> Any:
    """Parse the value of an override as TOML; text that is not valid TOML is returned unchanged.

    Raises SdditError for invalid TOML that starts with a quote or bracket, and for more than one value.
    """
    if len(text) > MAX_LINE or "\n" in text or "\r" in text:
        raise error("SD-R133", "an override is one value on one line", where=where, got=quoted(text), fix=ONE_VALUE)
    try:
        parsed = tomllib.loads(f"value = {text}")
    except RecursionError:
        raise _too_deep(where) from None
    except tomllib.TOMLDecodeError:
        if text.startswith(('"', "'", "[", "{")):
            fix = "write it as in TOML, inside quotes of the shell: 'key=[1, 2]'"
            raise error("SD-R133", "the value cannot be read", where=where, got=quoted(text), fix=fix) from None
        return text
    except ValueError:
        raise error("SD-R106", "a number is out of range", where=where, got=quoted(text), expect=IN_RANGE) from None
    return parsed["value"]


def _too_deep(where: str) -> SdditError:
    return error("SD-R131", "the recipe is nested too deep", where=where, expect=f"at most {MAX_DEPTH} levels")


def odd_values(tables: Mapping[str, Any], place: Any) -> list[Problem]:
    """Return problems of keys and values that TOML allows but recipes do not: dates, inf, nan, huge integers, quoted
    dots.
    """
    return list(_odd(tables, (), place))


def _odd(value: Any, path: tuple[str, ...], place: Any) -> Iterator[Problem]:
    key = ".".join(path)
    if len(path) > MAX_DEPTH:
        yield _too_deep(place(key)).problems[0]
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _odd_key(name, place(".".join((*path, name))))
            yield from _odd(inner, (*path, name), place)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _odd(inner, (*path, str(index)), place)
    elif isinstance(value, datetime.date | datetime.time):
        got = f"{path[-1]} = {value.isoformat()}"
        yield Problem("SD-R105", f"{key!r} is a date or a time", place(key), got, "a value", "put the text in quotes")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem("SD-R106", f"{key!r} must be finite", place(key), f"{path[-1]} = {value}", "a finite number")
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        got = f"a number of {value.bit_length()} bits"
        yield Problem("SD-R106", f"{key!r} is out of range", place(key), got, IN_RANGE)


def _odd_key(name: str, where: str) -> Iterator[Problem]:
    if re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+", name):
        what = f"{name!r} is one key with dots in it"
        yield Problem("SD-R102", what, where, f'"{name}"', "a dotted key", f"remove the quotes: {name} = ...")
    elif not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        yield Problem("SD-R132", "a key has letters other than a-z, 0-9, _ and -", where, quoted(name), fix="rename it")


def quoted(value: Any, most: int = 60) -> str:
    """Return a value as TOML writes it, truncated for a message."""
    match value:
        case bool():
            text = str(value).lower()
        case list() | tuple():
            text = f"[{', '.join(quoted(v, most) for v in value)}]"
        case {} if not value:
            text = "{}"
        case dict():
            text = f"{{ {', '.join(f'{k} = {quoted(v, most)}' for k, v in value.items())} }}"
        case str():
            text = json.dumps(value, ensure_ascii=False)
        case _:
            text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


class Entry(NamedTuple):
    """A header or a `key =` line."""

    key: str  # dotted, from the top
    line: int
    kind: Literal["value", "table", "array"]


_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_KEY = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")
_TOKEN = re.compile(r'''"""|\'\'\'|"(?:[^"\\]|\\.)*"|'[^']*'|#.*|[][{}]''')


def scan(text: str) -> Iterator[Entry]:
    """Yield the headers and `key =` lines of a TOML text, which may be invalid: tomllib keeps no positions."""
    table, quotes, depth = "", "", 0
    for number, line in enumerate(text.split("\n"), 1):
        rest = line
        if not quotes and depth == 0:
            if header := _HEADER.match(line):
                table = _dotted(header[2])
                yield Entry(table, number, "array" if header[1] == "[[" else "table")
                continue
            key = _KEY.match(line)
            if key is None:
                continue
            yield Entry(f"{table}.{_dotted(key[1])}".lstrip("."), number, "value")
            rest = line[key.end() :]
        quotes, depth = _still_open(rest, quotes, depth)


def _dotted(text: str) -> str:
    """Return the key as tomllib returns it, with quotes and escapes resolved where possible."""
    return ".".join(_unquoted(part) for part in re.findall(_PART, text))


def _unquoted(part: str) -> str:
    try:
        return str(tomllib.loads(f"part = {part}")["part"]) if part[0] in "\"'" else part
    except tomllib.TOMLDecodeError:  # an escape that is none: of a text that cannot be read anyway
        return part[1:-1]


def _still_open(rest: str, quotes: str, depth: int) -> tuple[str, int]:
    """Return the multi-line quotes and the number of brackets that are open at the end of a line."""
    while True:
        if quotes:
            end = rest.find(quotes)
            if end < 0:
                return quotes, depth
            rest, quotes = rest[end + 3 :], ""
        token = _TOKEN.search(rest)
        if token is None:
            return "", depth
        rest = rest[token.end() :]
        if token[0] in ('"""', "'''"):
            quotes = token[0]
        elif token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth = max(0, depth - 1)


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
        return Problem(
            "SD-R100",
            "a line break or a last comma inside { }",
            where,
            got,
            fix="use one line without it, or a [table]",
        )
    value = line.partition("=")[2].partition("#")[0].strip()
    wrong_value = position and re.match(r"Invalid value|Expected newline|Unescaped", message)
    if wrong_value and (fix := meant(value) or meant(_token(line, column))):
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


def _token(line: str, column: int) -> str:
    """Return the word of `line` at `column`, counted from 1."""
    before = re.split(r"[\s=,[{]", line[: column - 1])[-1]
    return before + re.split(r"[\s,\]}#]", line[column - 1 :])[0]


def meant(word: str) -> str:
    """Return how to write `word`, which is not a TOML value, or an empty string if that cannot be guessed."""
    low = word.lower()
    if low in {"true", "yes", "on"}:
        return "write true"
    if low in {"false", "no", "off"}:
        return "write false"
    if low in {"none", "null", "nil", "~"}:
        return "remove the key to use its default: TOML has no empty value"
    if re.fullmatch(r"[+-]?0\d+", word):
        return f"write {int(word)}"
    if re.fullmatch(r"[+-]?\d+\.", word):
        return f"write {word}0"
    if re.fullmatch(r"[+-]?\.\d+", word):
        return f"write {word.replace('.', '0.')}"
    if re.fullmatch(r"\d+,\d+", word):
        return f"write {word.replace(',', '.')}"
    if "\\" in word and word.startswith('"'):
        return "write single quotes around a text with backslashes"
    if any(mark in word for mark in "“”‘’„«»"):
        return "write straight quotes"
    if re.fullmatch(r"[\w./~:-]+", word) and not word.isdecimal():
        return f'put the text in quotes: "{word}"'
    return ""
