"""Rank and size from an environment that may hold anything."""

from __future__ import annotations

import pytest

from sddit.distributed import processes
from sddit.distributed.processes import VARIABLES, Placement, placement
from sddit.errors import SdditError

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def set_only(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Placement()),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Placement()),
        ({"RANK": "0", "LOCAL_RANK": "0"}, Placement()),
        ({"MASTER_PORT": "x", "MASTER_ADDR": ""}, Placement()),
        ({"WORLD_SIZE": "2", "RANK": "1", **MEETING}, Placement(2, 1, 0)),
        ({"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **MEETING}, Placement(8, 5, 1)),
    ],
)
def test_what_torchrun_sets_is_read(monkeypatch, values, expected):
    set_only(monkeypatch, values)
    assert placement() == expected
    assert (processes.world_size(), processes.rank()) == (expected.size, expected.rank)


@pytest.mark.parametrize(
    "values",
    [
        *({"WORLD_SIZE": text} for text in ("abc", "", "0", "-1", " 2", "2.0", "1e3", "\u0662", "9" * 30, "1_0")),
        *({"WORLD_SIZE": "2", "RANK": text, **MEETING} for text in ("abc", "", "-1", "2", "5", "9" * 5000)),
        {"WORLD_SIZE": "2", **MEETING},
        {"WORLD_SIZE": "2", "RANK": "1"},
        {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"},
        {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "29500", "MASTER_ADDR": " "},
        *({"WORLD_SIZE": "2", "RANK": "1", **MEETING, "MASTER_PORT": text} for text in ("0", "65536", "http", "-1")),
        *({"WORLD_SIZE": "2", "RANK": "1", **MEETING, "LOCAL_RANK": text} for text in ("2", "x", "-1")),
        {"WORLD_SIZE": "4", "RANK": "1", **MEETING, "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "1", **MEETING, "LOCAL_WORLD_SIZE": "3"},
        {"RANK": "1"},
        {"LOCAL_RANK": "1"},
        {"RANK": "x"},
        {"WORLD_SIZE": "1", "RANK": "1"},
    ],
    ids=str,
)
def test_anything_else_is_refused_and_never_raises_where_no_processes_are_needed(monkeypatch, values):
    set_only(monkeypatch, values)
    with pytest.raises(SdditError) as refused:
        placement()
    (problem,) = refused.value.problems
    assert problem.code == "SD-X808"
    assert len(problem.got) <= 200
    assert (processes.world_size(), processes.rank(), processes.local_rank()) == (1, 0, 0)


def test_only_the_parent_of_a_rank_is_its_launcher(monkeypatch, tmp_path):
    import os

    monkeypatch.setenv(processes.FAILURES, f"{os.getppid()}:{tmp_path}")
    assert processes.launcher_folder() == tmp_path
    for leftover in (f"1234567:{tmp_path}", str(tmp_path), ""):
        monkeypatch.setenv(processes.FAILURES, leftover)
        assert processes.launcher_folder() is None
