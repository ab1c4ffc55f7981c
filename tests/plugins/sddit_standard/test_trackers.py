"""Trackers and the optimizer of the core."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from sddit.testing import check
from sddit_standard.optimizers import AdamW
from sddit_standard.params import AdamWParams, CsvParams
from sddit_standard.trackers import Csv

CPU = torch.device("cpu")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_line_a_step_and_a_column_for_every_number(tmp_path):
    tracker = Csv(CsvParams(), folder=tmp_path)
    tracker.log(10, {"loss": 0.1, "lr": 1e-4})
    tracker.log(20, {"loss": 1 / 3, "lr": 1e-4, "grad_ratio/x": 2.0})
    tracker.log(30, {"loss": 0.3})
    tracker.close()
    found = rows(tmp_path)
    assert [row["step"] for row in found] == ["10", "20", "30"]
    assert [float(row["loss"]) for row in found] == [0.1, 1 / 3, 0.3]
    assert [row["grad_ratio/x"] for row in found] == ["", "2.0", ""]


def test_a_continued_run_takes_up_its_file_without_repeats(tmp_path):
    first = Csv(CsvParams(), folder=tmp_path)
    for step in (10, 20, 30):
        first.log(step, {"loss": step})
    second = Csv(CsvParams(), folder=tmp_path)  # continues from a checkpoint of step 10
    second.log(20, {"loss": 21.0})
    second.log(30, {"loss": 31.0})
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("10", "10.0"), ("20", "21.0"), ("30", "31.0")]


def test_steps_are_whole_numbers_even_if_given_as_floats(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n10.0,1.0\n20.0,2.0\n", encoding="utf-8")
    tracker = Csv(CsvParams(), folder=tmp_path)
    tracker.log(20, {"step": 20.0, "loss": 2.5})
    tracker.log(30, {"step": 30.0, "loss": 3.0, "new": 1.0})  # a new column reads the file again
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("10.0", "1.0"), ("20", "2.5"), ("30", "3.0")]


def test_a_line_cut_by_a_crash_is_omitted(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n10,1.0\n20,0.", encoding="utf-8")
    Csv(CsvParams(), folder=tmp_path).log(30, {"loss": 3.0})
    assert [row["step"] for row in rows(tmp_path)] == ["10", "30"]


def test_the_trackers_conform(toys):
    check("csv", "trackers")


def test_tensorboard_conforms_where_it_is_installed(toys, tmp_path):
    pytest.importorskip("tensorboard")
    check("tensorboard", "trackers")


KINDS = ({"head": False}, {"head": True}, {})


def test_one_step_of_adamw_is_the_papers_formula():
    """arXiv:1711.05101, algorithm 2: m / (sqrt(v) + eps) with bias correction, and decay times the rate."""
    w = torch.tensor([[1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[0.3, 0.5]], dtype=torch.float64)
    params = AdamWParams(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)
    optimizer = AdamW(params)([{"params": [w], "lr_scale": 1.0}], CPU)
    before, m, v = w.detach().clone(), torch.zeros_like(g), torch.zeros_like(g)
    for step in (1, 2):
        w.grad = g.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        change = (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-3)
        before = before * (1 - 0.1 * 0.5) - 0.1 * change
        torch.testing.assert_close(w.detach(), before, rtol=1e-12, atol=0)


@pytest.mark.parametrize("everything", [False, True])
def test_vectors_decay_only_with_decay_all(everything):
    matrix, vector = torch.ones(2, 2, requires_grad=True), torch.ones(2, requires_grad=True)
    params = AdamWParams(lr=0.1, weight_decay=0.5, decay_all=everything)
    optimizer = AdamW(params)([{"params": [matrix, vector], "lr_scale": 0.5}], CPU)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert matrix.max() < 1
    assert (vector.max() < 1) == everything
    assert {group["lr_scale"] for group in optimizer.param_groups} == {0.5}


def test_heads_decay_by_their_own_weight_decay_where_it_is_given():
    def left(**settings: float) -> list[float]:
        """Return weights that start at 1, after a step with gradient 0: of the backbone, a head, an unnamed group."""
        weights = [torch.ones(2, 2, requires_grad=True) for _ in range(3)]
        groups = [{"params": [w], "lr_scale": 1.0, **kind} for w, kind in zip(weights, KINDS, strict=True)]
        optimizer = AdamW(AdamWParams(lr=0.1, **settings))(groups, CPU)
        for weight in weights:
            weight.grad = torch.zeros(2, 2)
        optimizer.step()
        return [weight.max().item() for weight in weights]

    assert left(weight_decay=0.5) == pytest.approx([0.95, 0.95, 0.95])
    assert left(weight_decay=0.5, head_weight_decay=0.2) == pytest.approx([0.95, 0.98, 0.95])
    assert left(weight_decay=0.5, head_weight_decay=0.0) == pytest.approx([0.95, 1.0, 0.95])


def test_the_bits_of_a_step_do_not_depend_on_the_threads():
    def stepped(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(257, 1031, generator=generator, requires_grad=True)  # odd sizes: the tails of the vector loops
        optimizer = AdamW(AdamWParams(lr=1e-3, weight_decay=0.1))([{"params": [w], "lr_scale": 1.0}], CPU)
        for _ in range(3):
            w.grad = torch.randn(w.shape, generator=generator)
            optimizer.step()
        return w.detach()

    one = stepped(1)
    assert torch.equal(one, stepped(2))
    assert not torch.equal(one, torch.nextafter(one, one + 1))


def test_adamw_conforms(toys):
    check("adamw", "optimizers")
    check("adamw", "optimizers", weight_decay=0.1, betas=(0.5, 0.6))
