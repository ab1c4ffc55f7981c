"""Files of class names: what does not belong to a name is dropped, and what leaves a class open is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sddit.data.class_names import check_names, read_names
from sddit.errors import SdditError


@pytest.mark.parametrize(
    "data",
    ["a\nb c\nd", "a\nb c\nd\n", "a\nb c\nd\n\n \n", "\ufeffa\r\nb c\r\nd\r\n", "a\rb c\rd\r", " a\nb c \n\td\n"],
)
def test_marks_line_ends_and_blank_last_lines_do_not_count(tmp_path: Path, data: str) -> None:
    (tmp_path / "names.txt").write_bytes(data.encode())
    assert read_names(tmp_path / "names.txt") == ["a", "b c", "d"]


def test_a_separator_that_ends_no_line_is_refused_inside_a_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\u2028b\nc")
    with pytest.raises(SdditError, match=r"SD-D316.*class 0.*U\+2028"):
        read_names(tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a\n\nb\n", r"blank line(.|\n)*names.txt:2"),
        (b"\na\n", r"blank line(.|\n)*names.txt:1"),
        (b"", "without class names"),
        (b"\n\n", "without class names"),
        ("a\n\ufeffb\n".encode(), r"class 1.*U\+FEFF"),
        ("ä\n".encode("latin-1"), r"cannot be read(.|\n)*UTF-8"),
        ("a\n".encode("utf-16"), r"cannot be read(.|\n)*UTF-8"),
        (b"a\0b\n", r"U\+0000"),
    ],
)
def test_names_that_leave_a_class_open_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "names.txt").write_bytes(data)
    with pytest.raises(SdditError, match=f"SD-D316.*{words}"):
        read_names(tmp_path / "names.txt")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("nothing", "pipe", "."):
        with pytest.raises(SdditError, match=r"SD-D316.*cannot be read"):
            read_names(tmp_path / name)


def test_similar_names_are_kept_with_a_warning() -> None:
    for names in (["crane", "x", "crane"], ["cat", "cat "], ["caf\u00e9", "cafe\u0301"]):
        with pytest.warns(UserWarning, match="differ only in outer spaces"):
            check_names(names, where="here")
    check_names(["cat", "Cat", "cats", "1", "01", "a,b"], where="here")
