"""Reading a recipe file: caps, characters, syntax, odd literals, and the line of a key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sddit.errors import Problem, SdditError
from sddit.recipes.parsing import MAX_BYTES, MAX_LINE, parse_value, quoted, read, scan

Write = Callable[[str, str], Path]


def problem_of(path: Path) -> Problem:
    with pytest.raises(SdditError) as caught:
        read(path)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_reads_tables_and_says_where_each_key_stands(write: Write) -> None:
    text = 'seed = 1  # [not.a.table]\n[a]\n"b" = """\n[x]\ny = 2\n"""\n[a.c]\nd = [\n  1,\n  2,\n]\ne.f = { g = 1 }\n'
    source = read(write("sub/r.toml", text))
    assert source.tables["a"]["c"] == {"d": [1, 2], "e": {"f": {"g": 1}}}
    places = {key: source.place(key) for key in ("seed", "a", "a.b", "a.c", "a.c.d", "a.c.e.f.g", "a.c.missing", "x.y")}
    assert places == {
        "seed": "sub/r.toml:1",
        "a": "sub/r.toml:2",
        "a.b": "sub/r.toml:3",
        "a.c": "sub/r.toml:7",
        "a.c.d": "sub/r.toml:8",
        "a.c.e.f.g": "sub/r.toml:12",  # a key in braces: the line of the braces
        "a.c.missing": "sub/r.toml:7",  # the nearest table
        "x.y": "sub/r.toml",  # inside a text: no key at all
    }


@pytest.mark.parametrize("name", [r'"a | b & c_d % # $ \\ {"', r"'a \ b'", r'"\u00e9"', r'"\"a\""', "\"'a'\""])
def test_a_quoted_name_that_is_refused_stands_where_it_is_written(write: Write, name: str) -> None:
    path = write("r.toml", f"[a]\nb = 1\n[a.{name}]\nc = 1\n")
    assert (problem_of(path).code, problem_of(path).where) == ("SD-R132", "r.toml:3")
    assert read(write("r.toml", '[a]\nb = 1\n[a."plain"]\nc = 1\n')).place("a.plain.c") == "r.toml:4"  # the control


def test_a_path_outside_the_current_folder_is_shown_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "r.toml"
    path.write_text("a = 1")
    assert read(path).place("a") == f"{path}:1"


SYNTAX = {
    "x = True": ("SD-R105", "write true"),
    "x = yes": ("SD-R105", "write true"),
    "x = off": ("SD-R105", "write false"),
    "x = None": ("SD-R105", "remove the key"),
    "x = 010": ("SD-R105", "write 10"),
    "x = 1.": ("SD-R105", "write 1.0"),
    "x = -.5": ("SD-R105", "write -0.5"),
    "x = 1,5": ("SD-R105", "write 1.5"),
    "x = 1:30": ("SD-R105", 'in quotes: "1:30"'),
    "x = edm": ("SD-R105", 'in quotes: "edm"'),
    "x = “edm”": ("SD-R105", "straight quotes"),
    'x = "C:\\data"': ("SD-R105", "single quotes"),
    "x = { start = .5, end = 1.0 }": ("SD-R105", "write 0.5"),
    "x = [1, 2, no]": ("SD-R105", "write false"),
    "x = 2024-01-01": ("SD-R105", "in quotes"),
    "x = 07:30:00": ("SD-R105", "in quotes"),
    "x = nan": ("SD-R106", ""),
    "x = [0.0, -inf]": ("SD-R106", ""),
    "x = 1e400": ("SD-R106", ""),
    "x = 9223372036854775808": ("SD-R106", ""),
    f"x = {'9' * 4400}": ("SD-R131", ""),  # the line is too long before the number is
    "x = {a = 1,\nb = 2}": ("SD-R100", "one line"),
    "x = {a = 1,}": ("SD-R100", "one line"),
    "x = 'abc": ("SD-R100", ""),
    "[a": ("SD-R100", ""),
    "x 3": ("SD-R100", ""),
    "x = 1\ry = 2": ("SD-R100", ""),
    "": ("SD-R101", ""),
    "# nothing\n": ("SD-R101", ""),
    '{"backbone": {}}': ("SD-R101", ".json"),
    "backbone:\n  name: dit\n": ("SD-R101", ""),
    "---\na: 1\n": ("SD-R101", ""),
    '"loss.denoise.weight" = 0': ("SD-R102", "loss.denoise.weight = ..."),
    '"größe" = 1': ("SD-R132", ""),
    "x = 1\ny = '\ufeff'": ("SD-R132", "delete"),
    "x = 1 # \u202e": ("SD-R132", "delete"),
    '"x\u200b" = 1': ("SD-R132", "delete"),
    "x = '\x00'": ("SD-R132", "delete"),
    f"x = {'[' * 2000}": ("SD-R131", ""),
    f"x = {'{a=' * 20}1{'}' * 20}": ("SD-R131", ""),
    "x = '" + "a" * 5000 + "'": ("SD-R131", ""),
    "#" + "\n#" * MAX_BYTES: ("SD-R131", ""),
}


@pytest.mark.parametrize("text", SYNTAX, ids=lambda text: ascii(text[:30]))
def test_every_slip_has_its_code_and_its_remedy(write: Write, text: str) -> None:
    code, fix = SYNTAX[text]
    found = problem_of(write("r.toml", text))
    assert (found.code, fix in found.fix) == (code, True), found


@pytest.mark.parametrize(
    "text",
    [
        "x = 1_000",
        "x = 0x10",
        "x = 1e5",
        "x = 'True'",
        "x = '2024-01-01'",
        "\tx = 1",
        "x = 1\r\n",
        "x = 'grün'",
        "# 日本",
    ],
)
def test_what_toml_reads_as_it_looks_is_let_through(write: Write, text: str) -> None:
    assert read(write("r.toml", f"{text}\nlast = 1")).tables["last"] == 1


def test_the_line_of_a_slip_is_named(write: Write) -> None:
    found = problem_of(write("r.toml", "a = 1\n[t]\nb = 2\nc = yes\n"))
    assert (found.where, found.got) == ("r.toml:4", "c = yes")


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("[o]\nlr = 1\nb = 2\nlr = 3", "'o.lr' given twice (lines 2 and 4)", "r.toml:4"),
        ("[a]\nx = 1\n[b]\n[a]", "'a' given twice (lines 1 and 4)", "r.toml:4"),
        ("a = 1\n\na.b = 2", "'a' is a value on line 1 and a table on line 3", "r.toml:3"),
        ("[p.a]\nx = {y = 1}\n[p.a.x.z]", "'p.a.x' is a value on line 2 and a table on line 3", "r.toml:3"),
        ("a.b = 1\n[a]\nc = 1", "a key or a table is given twice", "r.toml:2"),
    ],
)
def test_what_is_given_twice_is_named_with_both_lines(write: Write, text: str, what: str, where: str) -> None:
    found = problem_of(write("r.toml", text))
    assert (found.code, found.what, found.where) == ("SD-R104", what, where)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b"a = 1\nb = '\xe9'\n")
    assert problem_of(path).what == "byte 0xE9 at line 2 is not UTF-8"


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    assert problem_of(tmp_path).code == "SD-R121"


def test_the_resolved_form_is_json(write: Write) -> None:
    assert read(write("r.json", '{"a": {"b": 1}}')).tables == {"a": {"b": 1}}
    for text, code in {"[1]": "SD-R101", "{": "SD-R100", '{"a": NaN}': "SD-R106", "[" * 60000: "SD-R100"}.items():
        assert problem_of(write("r.json", text)).code == code


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-4", 1e-4),
        ("true", True),
        ("True", "True"),
        ("010", "010"),
        ("edm", "edm"),
        ("", ""),
        ("a b", "a b"),
        ("[1, 2]", [1, 2]),
        ("{start=1, end=2}", {"start": 1, "end": 2}),
        ("'1'", "1"),
        ("runs/x.toml", "runs/x.toml"),
    ],
)
def test_an_override_value_is_toml_or_text(text: str, value: object) -> None:
    found = parse_value(text, "command line")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "code"),
    [("1\nb = 2", "SD-R133"), ('"a', "SD-R133"), ("[1", "SD-R133"), ("1" * 5000, "SD-R133"), ("[" * 4000, "SD-R131")],
)
def test_an_override_value_is_one_value(text: str, code: str) -> None:
    with pytest.raises(SdditError) as caught:
        parse_value(text, "command line")
    assert caught.value.problems[0].code == code


def test_values_are_shown_as_toml_writes_them() -> None:
    assert quoted({"a": [1, "x", True], "b": 0.5}) == '{ a = [1, "x", true], b = 0.5 }'
    assert len(quoted("x" * 500)) == 60


def test_the_scan_survives_what_the_parser_refuses() -> None:
    assert [entry.key for entry in scan("a = yes\n[b\n[c]\nd = '\n[e]\n")] == ["a", "c", "c.d", "e"]


def test_a_byte_order_mark_of_utf8_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes("seed = 1\n[train]\nsteps = 2\n".encode("utf-8-sig"))
    assert read(path).tables == {"seed": 1, "train": {"steps": 2}}
    for encoding in ("utf-16", "utf-32"):
        path.write_bytes("seed = 1\n".encode(encoding))
        with pytest.raises(SdditError, match=r"SD-R132(.|\n)*save the file as UTF-8"):
            read(path)


def test_a_value_that_is_too_long_is_called_so() -> None:
    assert parse_value("a" * MAX_LINE, "here") == "a" * MAX_LINE
    with pytest.raises(SdditError, match=r"SD-R133: the value of an override is too long(.|\n)*4,097 characters"):
        parse_value("a" * (MAX_LINE + 1), "here")
