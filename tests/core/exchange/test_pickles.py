"""Test that the pickle reader reads weights of published files and runs no code."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sddit.errors import SdditError
from sddit.exchange import pickles
from sddit.exchange.files import read_weight_file

STATE = OrderedDict(a=torch.arange(4.0), b=torch.ones(2, 2, dtype=torch.float16))


def saved(path: Path, value: Any, **more: Any) -> Path:
    torch.save(value, path, **more)
    return path


def read(path: Path, weights: str = "") -> Any:
    return read_weight_file(path, weights=weights, trust_pickle=True)


NESTED = {
    "model": OrderedDict(a=torch.zeros(3)),
    "ema": OrderedDict(a=torch.ones(3)),
    "opt": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
    "args": argparse.Namespace(model="DiT-XL/2", num_classes=1000),
    "step": 70,
}


@pytest.mark.parametrize(
    ("weights", "chosen", "value"), [("", "ema", 1.0), ("model", "model", 0.0), ("ema", "ema", 1.0)]
)
def test_nested_file_gives_the_requested_set(tmp_path: Path, weights: str, chosen: str, value: float) -> None:
    file = read(saved(tmp_path / "x.pt", NESTED), weights)
    assert (file.set_name, file.step) == (chosen, 70)
    assert file.state["a"].tolist() == [value] * 3


def test_flat_file_is_one_set(tmp_path: Path) -> None:
    file = read(saved(tmp_path / "x.pt", STATE))
    assert (file.set_name, file.step) == ("", 0)
    assert all(torch.equal(file.state[name], STATE[name]) for name in STATE)
    with pytest.raises(SdditError, match="SD-C446"):
        read(tmp_path / "x.pt", "ema")
    with pytest.raises(SdditError, match="SD-C446"):
        read(saved(tmp_path / "y.pt", NESTED), "best")


def test_untrusted_pickle_is_not_opened_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.exchange.files.load_pickle", lambda path: pytest.fail("it was opened"))
    for name in ("x.pt", "x.safetensors", "x.bin"):
        with pytest.raises(SdditError, match=r"SD-C440(.|\n)*--trust-pickle"):
            read_weight_file(saved(tmp_path / name, STATE))


class Canary:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def by_stack(canary: Canary) -> bytes:
    """Return a pickle with STACK_GLOBAL, which takes names from strings on the stack."""
    return pickle.dumps(canary, protocol=4)


def by_old_opcode(canary: Canary) -> bytes:
    """Return a pickle with INST, of protocol 0."""
    return b"(S'" + str(canary.path).encode() + b"'\nios\nmkdir\n."


def rewritten(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Return a file of torch.save with its pickle replaced."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", compression) as new:
        for member in old.infolist():
            data = program if member.filename.endswith("/data.pkl") else old.read(member)
            new.writestr(member.filename, data)
    return path


@pytest.mark.parametrize("protocol", [2, by_stack, by_old_opcode], ids=["global", "stack global", "inst"])
@pytest.mark.parametrize("inside", [False, True])
def test_malicious_pickle_is_refused_and_runs_nothing(
    tmp_path: Path, protocol: int | Callable[[Canary], bytes], inside: bool
) -> None:
    canary = Canary(tmp_path / "canary")
    if callable(protocol):
        path = rewritten(tmp_path / "x.pt", protocol(canary))
    else:
        held = {"model": {"a": torch.zeros(2)}, "args": canary} if inside else canary
        path = saved(tmp_path / "x.pt", held, pickle_protocol=protocol)
    with pytest.raises(SdditError, match="SD-C440"):
        read(path)
    assert not (tmp_path / "canary").exists()


def test_malicious_pickle_runs_with_plain_pickle_load(tmp_path: Path) -> None:
    """Control: the pickle is harmful."""
    canary = Canary(tmp_path / "canary")
    torch.load(saved(tmp_path / "x.pt", canary), weights_only=False)
    assert canary.path.is_dir()


def test_torch_refuses_what_the_scan_would_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = Canary(tmp_path / "canary")
    monkeypatch.setattr(pickles, "_refuse_program", lambda path, program: None)
    with pytest.raises(SdditError, match="SD-C404"):
        read(saved(tmp_path / "x.pt", canary))
    assert not canary.path.exists()


def test_truncated_files_of_torch_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pt", {"a": torch.arange(1000.0)}).read_bytes()
    for fraction in (0.0, 0.1, 0.5, 0.9, 0.99):
        (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * fraction)])
        with pytest.raises(SdditError, match="SD-C404"):
            read(tmp_path / "cut.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(SdditError, match="SD-C404"):
        read(tmp_path / "bare.pt")
    for held in (STATE, {"a": Canary(tmp_path / "canary")}):
        old = saved(tmp_path / "old.pt", held, _use_new_zipfile_serialization=False)
        with pytest.raises(SdditError, match=r"SD-C404(.|\n)*ask its author") as refused:
            read(old)
        assert "load and save" not in str(
            refused.value
        )  # it may contain code, so the message must not suggest to load it elsewhere
    assert not (tmp_path / "canary").exists()


def test_zip_bomb_and_oversized_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SdditError, match=r"SD-C404(.|\n)*not the layout that torch.save"):
        read(rewritten(tmp_path / "packed.pt", pickle.dumps({}, protocol=2), zipfile.ZIP_DEFLATED))
    monkeypatch.setattr(pickles, "MAX_PROGRAM", 10)
    with pytest.raises(SdditError, match="the pickle in it is too large"):
        read(saved(tmp_path / "x.pt", STATE))
    monkeypatch.setattr(pickles, "MAX_BYTES", 100)
    with pytest.raises(SdditError, match="too large"):
        read(tmp_path / "x.pt")


@pytest.mark.parametrize("place", ["flat", "nested", "in a list", "in arguments", "in itself"])
def test_tensor_larger_than_its_storage_is_refused(tmp_path: Path, place: str) -> None:
    """With strides of 0 a few bytes claim gigabytes; a view that shares stored values is allowed."""
    bomb = torch.zeros(8).expand(2**20, 2**10, 8)
    itself: list[Any] = [bomb]
    itself.append(itself)
    held: dict[str, Any] = {
        "flat": {"a": bomb},
        "nested": {"model": {"a": torch.zeros(1)}, "opt": {"state": {0: {"exp": bomb}}}},
        "in a list": {"model": {"a": torch.zeros(1)}, "more": [(1, bomb)]},
        "in arguments": {"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(x=bomb)},
        "in itself": {"model": {"a": torch.zeros(1)}, "more": itself},
    }
    path = saved(tmp_path / "x.pt", held[place])
    assert path.stat().st_size < 10_000
    with pytest.raises(SdditError, match=r"SD-C440(.|\n)*8,589,934,592 values, shape \[1048576, 1024, 8\]"):
        read(path)
    whole = torch.arange(6.0).reshape(2, 3)
    view = read(saved(tmp_path / "view.pt", {"a": whole, "b": whole.T, "c": whole[1], "d": torch.zeros(2, 0)}))
    assert torch.equal(view.state["b"], whole.T)


def test_storage_shared_by_too_many_tensors_is_refused(tmp_path: Path) -> None:
    """Each tensor takes its own memory once copied; tied weights share one storage twice and are allowed."""
    whole = torch.zeros(1000)
    with pytest.raises(SdditError, match=r"SD-C440(.|\n)*too many tensors(.|\n)*20,000 bytes(.|\n)*4 times the 4,000"):
        read(saved(tmp_path / "x.pt", {str(name): whole for name in range(5)}))
    assert len(read(saved(tmp_path / "y.pt", {str(name): whole for name in range(4)})).state) == 4


def test_damaged_safetensors_file_is_reported(tmp_path: Path) -> None:
    for data in (b"", b"\0" * 4, struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"[]"):
        (tmp_path / "x.safetensors").write_bytes(data)
        with pytest.raises(SdditError, match="SD-C404"):
            read_weight_file(tmp_path / "x.safetensors")
    with pytest.raises(SdditError, match="SD-C444"):
        read_weight_file(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        ("float8_e5m2", ""),
        ("int8", ""),
        ("float64", "SD-C404"),
        ("complex128", "SD-C404"),
        *((name, "SD-C440") for name in ("quint8", "load", "serialization", "float")),
    ],
)
def test_types_of_eight_bits_are_read_and_no_type_reads_beyond_the_data(tmp_path: Path, dtype: str, code: str) -> None:
    saved(tmp_path / "x.pt", {"a": torch.ones(3).to(torch.float8_e4m3fn)})
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as archive,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_STORED) as other,
    ):
        for member in archive.infolist():
            other.writestr(member.filename, archive.read(member).replace(b"float8_e4m3fn", dtype.encode()))
    if code:
        with pytest.raises(SdditError, match=code):
            read(tmp_path / "y.pt")
    else:
        assert read(tmp_path / "y.pt").state["a"].dtype == getattr(torch, dtype)
