"""Test the mode of `sddit-run evaluate` that the Inception extractor offers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from sddit_standard.features.adm import AdmScores


@pytest.fixture
def finished(tmp_path):
    """Return a run folder that contains only samples."""
    (tmp_path / "run" / "samples").mkdir(parents=True)
    np.savez(tmp_path / "run" / "samples" / "samples.npz", arr_0=np.zeros((5, 8, 8, 3), dtype=np.uint8))
    return tmp_path / "run"


def adm_scores() -> AdmScores:
    figures = {"samples": 5, "fid": 12.345, "sfid": None, "inception_score": 3.5, "precision": 0.5, "recall": 0.25}
    return AdmScores(**figures, reference="r.npz", weights_sha256="ab" * 32)


def test_evaluate_scores_by_the_files_of_its_user(sddit_run, monkeypatch, finished):
    found = adm_scores()
    monkeypatch.setattr("sddit_standard.features.adm.score_samples", lambda *_, **__: found.to_json())
    said = sddit_run("evaluate", finished, "--inception", "w.pth", "--reference", "r.npz")
    assert said.status == 0, said.stderr
    assert re.search(r"^5 samples against r\.npz, weights abababababab$", said.stdout, re.MULTILINE)
    assert re.search(r"^FID +12\.35 *$", said.stdout, re.MULTILINE)
    assert "sFID" not in said.stdout
    assert json.loads(sddit_run("evaluate", finished, "--inception", "w", "--reference", "r", "--json").stdout) == {
        "adm": found.to_json() | {"not_compared": ["size", "crop"]}  # there are no such files
    }
    alone = sddit_run("evaluate", finished, "--inception", "w.pth")
    assert (alone.status, "must be used together" in alone.stderr) == (2, True)


def test_evaluate_speaks_on_one_rank_of_several(sddit_run, monkeypatch, finished):
    monkeypatch.setattr("sddit_standard.features.adm.score_samples", lambda *_, **__: adm_scores().to_json())
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    reported = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        said = sddit_run("evaluate", finished, "--inception", "w.pth", "--reference", "r.npz")
        assert said.status == 0, said.stderr
        reported[rank] = said.stdout
    assert "Inception score" in reported["0"]
    assert reported["1"] == ""
