"""What is packed is what was to be saved, and no file is written by a descriptor that has become another file's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sddit.errors import SdditError
from sddit.storage.lock import refuse_lost_locks, release_lock, take_lock
from sddit.storage.metrics_log import MetricsLog
from sddit.storage.tensors import pack, unpack

TENSORS = {
    "a": torch.arange(6.0).view(2, 3).t(),
    "scalar": torch.tensor(2.0),
    "empty": torch.zeros(0, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
}
real = safetensors.torch.save


@pytest.mark.parametrize(
    "replacement",
    [
        lambda tensors, _: b"",
        lambda tensors, _: None,
        lambda tensors, _: real(tensors)[:-1],
        lambda tensors, _: real(tensors) + b"0",
        lambda tensors, _: real({name: tensor * 0 for name, tensor in tensors.items()}),
        lambda tensors, _: real({name: tensor.double() for name, tensor in tensors.items()}),
        lambda tensors, _: real({**tensors, "more": torch.ones(2)}),
        lambda tensors, _: real({name: tensor for name, tensor in tensors.items() if name != "a"}),
    ],
)
def test_other_bytes_than_the_tensors_are_refused(monkeypatch, replacement):
    back = unpack(pack(TENSORS))
    assert all(torch.equal(back[name], tensor) for name, tensor in TENSORS.items())
    monkeypatch.setattr(safetensors.torch, "save", replacement)
    with pytest.raises(SdditError, match="SD-P228") as refused:
        pack(TENSORS)
    assert Path(__file__).name in refused.value.problems[0].where


@pytest.mark.parametrize("reused", [False, True])
def test_a_log_whose_descriptor_was_closed_writes_to_no_other_file(tmp_path, reused):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    os.close(log._file)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT) if reused else -1
    for use in (lambda: log.append({"step": 2}), log.sync):
        with pytest.raises(SdditError, match="SD-P228"):
            use()
    log.close()
    if reused:
        assert other == log._file
        os.close(other)
        assert (tmp_path / "other").read_bytes() == b""
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == '{"step": 1}\n'


def test_a_lost_lock_is_noticed_and_its_release_cuts_no_other_file(tmp_path):
    lock, _ = take_lock(tmp_path / "run.lock")
    refuse_lost_locks()
    os.close(lock)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.write(other, b"theirs")
    assert other == lock
    with pytest.raises(OSError, match="Bad file descriptor"):
        refuse_lost_locks()
    release_lock(lock)
    assert os.fstat(other).st_size == 6
    os.close(other)
