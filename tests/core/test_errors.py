"""The one form of errors, and the catalogue behind it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sddit
from sddit.errors import Problem, SdditError, catalogue, error, exit_status, nearest, one_of, printable, raise_all

CORE = Path(sddit.__file__).parent
EXITS = {"R": {2}, "P": {3}, "D": {4}, "C": {5}, "N": {6}, "M": {7}, "F": {8}, "X": {9}}
SAMPLING = {2, 5, 6}  # a wrong request, a model that cannot serve it, numbers that are not finite


def test_a_problem_is_printed_field_by_field() -> None:
    problem = Problem("SD-R102", "unknown key 'a.b'", "r.toml:3", "b = 1", "one of c", "rename it")
    assert problem.lines() == [
        "error SD-R102: unknown key 'a.b'",
        "  where:  r.toml:3",
        "  got:    b = 1",
        "  expect: one of c",
        "  fix:    rename it",
        "  more:   sddit-run explain SD-R102",
    ]
    assert Problem("SD-R102", "x").lines() == ["error SD-R102: x", "  more:   sddit-run explain SD-R102"]


@given(st.text(), st.text())
def test_a_problem_is_a_few_clean_lines_for_every_quoted_value(what: str, got: str) -> None:
    lines = Problem("SD-R102", what, got, got, got, got).lines()
    assert len(lines) <= 12
    assert all(line.isprintable() for line in lines)


def test_control_and_bidi_characters_are_shown_escaped() -> None:
    assert printable("a\x1b[31m\u202eb\nc\u200b é") == "a\\x1b[31m\\u202eb\\nc\\u200b é"


def test_problems_are_raised_together_or_not_at_all() -> None:
    raise_all([])
    with pytest.raises(SdditError) as caught:
        raise_all(Problem(code, code) for code in ("SD-R102", "SD-D305"))
    assert [p.code for p in caught.value.problems] == ["SD-R102", "SD-D305"]
    assert str(caught.value).count("error SD-") == 2
    with pytest.raises(ValueError, match="at least one"):
        SdditError()


def test_the_exit_status_is_that_of_the_first_problem() -> None:
    assert SdditError(Problem("SD-D305", "x"), Problem("SD-R102", "y")).exit_status == 4
    assert error("SD-R102", "x", where="y").exit_status == 2
    assert exit_status("SD-Z999") == 1  # a code of no catalogue is a bug of ours


def test_the_nearest_name_is_offered_if_there_is_one() -> None:
    assert (nearest("pach", ["patch", "width"]), nearest("zzz", ["patch"])) == ("patch", "")
    assert nearest("digits/dti", ["digits/mdt", "digits/dit"]) == "digits/dit"
    assert nearest("digits/dt", ["digits/mdtv2", "digits/mdt"]) == "digits/mdt"
    assert one_of("pach", ["width", "patch"]) == "one of patch, width   (did you mean 'patch'?)"
    assert one_of("zzz", ["b", "a"]) == "one of a, b"
    assert one_of("zzz", [f"n{i:02}" for i in range(20)], max_names=2) == "one of n00, n01, ..."


def test_every_entry_of_the_catalogue_is_complete() -> None:
    for code, entry in catalogue().items():
        assert re.fullmatch(r"SD-[RPDCNMFXT]\d{3}", code), code
        assert set(entry) - {"action"} == {"title", "exit", "cause", "remedy"}, code
        assert entry.get("action", True) is True, code
        assert entry["exit"] in EXITS.get(code[3], SAMPLING), code
        assert all(str(entry[key]).strip() for key in ("title", "cause", "remedy")), code


def test_every_code_in_the_core_is_in_the_catalogue() -> None:
    used = {code for path in CORE.rglob("*.py") for code in re.findall(r"SD-[RPDCNMFXT]\d{3}", path.read_text("utf-8"))}
    assert used - set(catalogue()) == set()


def test_the_fix_defaults_to_a_remedy_that_is_a_concrete_action() -> None:
    remedy = catalogue()["SD-P202"]["remedy"]
    assert f"  fix:    {remedy}" in Problem("SD-P202", "x").lines()
    assert "  fix:    type this" in Problem("SD-P202", "x", fix="type this").lines()
    assert not any("fix:" in line for line in Problem("SD-R102", "x").lines()), "a general remedy"
    assert not any("fix:" in line for line in Problem("ACME-1", "x").lines()), "a code of a plugin"


def test_a_name_that_an_ascii_locale_could_not_decode_is_readable():
    undecoded = "runs-ü😀".encode().decode("ascii", "surrogateescape")
    assert printable(undecoded) == "runs-ü😀"
    assert printable(b"x\xff".decode("ascii", "surrogateescape")) == "x\\udcff"
