"""Test Muon: which parameters it orthogonalizes, its numbers, a restart, its cost, and what it refuses."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sddit
from sddit.errors import SdditError
from sddit.interfaces import CheckContext, Matrix, ParameterRole
from sddit.recipes.costs import plan
from sddit.recipes.resolve import resolve
from sddit.testing import sessions
from sddit.training.build import build_session
from sddit.training.optimization import set_learning_rate
from sddit.training.parameter_roles import parameter_roles
from sddit.training.session import Session
from sddit_dit.frame import Frame
from sddit_standard import checks, muon
from sddit_standard.params import MuonParams

SMALL = ("train.batch=4", "train.steps=40", "optimizer.warmup=0", "attention.name=eager")
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as Muon's author published them


def session_of(recipe: str = "digits/muon", *overrides: str) -> Session:
    return build_session(resolve(recipe, [*SMALL, *overrides]), torch.device("cpu"))


def failing() -> list[str]:
    return [found.what for found in checks.muon(CheckContext()) if not found.holds]


def test_the_check_holds() -> None:
    assert failing() == []


def test_a_single_iteration_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MuonParams.model_fields["ns_steps"], "default", 1)
    MuonParams.model_rebuild(force=True)
    try:
        assert "singular values of an update: distance from 1" in failing()
    finally:
        monkeypatch.undo()
        MuonParams.model_rebuild(force=True)


def test_stacked_matrices_that_are_not_split_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "chunk", lambda tensor, count, dim=0: [tensor] if count == 3 else tensor.split(16))
    assert "stacked matrices: numbers unlike those of three" in failing()


def test_tables_that_are_orthogonalized_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    build = muon.Muon.__call__

    def careless(self: muon.Muon, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
        return build(self, [{**g, "role": "matrix" if g["params"][0].ndim == 2 else g["role"]} for g in groups], device)

    monkeypatch.setattr(muon.Muon, "__call__", careless)
    assert failing() == ["embedding and bias: numbers unlike those of AdamW"]


def orthogonalized(x: Tensor) -> Tensor:
    """Return x after five Newton-Schulz iterations in float64."""
    a, b, c = COEFFICIENTS
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize(("rule", "factor"), [("match_rms_adamw", 0.2 * math.sqrt(24)), ("original", math.sqrt(1.5))])
def test_three_steps_by_hand(rule: str, factor: float) -> None:
    """Momentum, Nesterov and the factor on the learning rate, against float64: torch iterates in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 16, dtype=torch.float64, generator=generator)
    gradients = torch.randn(3, 24, 16, dtype=torch.float64, generator=generator)
    trained = weight.clone().requires_grad_()
    group = {"params": [trained], "lr_scale": 1.0, "head": False, "role": "matrix", "stacked": 1}
    optimizer = sddit.build("optimizers", "muon", {"lr": 0.01, "adjust_lr_fn": rule})([group], torch.device("cpu"))
    theirs, average = weight.clone(), torch.zeros_like(weight)
    for gradient in gradients:
        trained.grad = gradient.clone()
        optimizer.step()
        average = 0.95 * average + 0.05 * gradient
        ahead = 0.95 * average + 0.05 * gradient
        theirs -= 0.01 * factor * orthogonalized(ahead.T).T
    change = theirs - weight
    assert (trained.detach() - theirs).norm() < 0.02 * change.norm()
    assert (trained.detach() - weight + 0.01 * factor * 3 * orthogonalized(gradients[0].T).T).norm() > change.norm() / 2
    momentum = optimizer.state[trained]["momentum_buffer"]
    torch.testing.assert_close(momentum, average, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("digits/muon", ()),
        ("digits/muon", ("backbone.decoder.depth=1", "backbone.decoder.width=32", "backbone.cls_token=true")),
        ("digits/mdtv2", ("optimizer.name=muon",)),
    ],
)
def test_the_matrices_are_those_of_the_blocks(recipe: str, overrides: tuple[str, ...]) -> None:
    session = session_of(recipe, *overrides)
    backbone, roles = session.student.backbone, parameter_roles(session.student)
    named = {name: roles[parameter] for name, parameter in backbone.named_parameters()}
    for name, parameter in backbone.named_parameters():
        linear = name.endswith(".weight") and isinstance(backbone.get_submodule(name.rpartition(".")[0]), nn.Linear)
        in_block = name.startswith("blocks.") or ".block." in name
        assert (named[name].role == "matrix") == (linear and in_block and parameter.ndim == 2), name
    assert named["blocks.0.attention.qkv.weight" if "mdt" not in recipe else "blocks.0.block.attention.qkv.weight"] == (
        ParameterRole("matrix", stacked=3)
    )
    assert {named[name].role for name in ("patch.weight", "label.weight", "timestep.hidden.weight")} == {"embedding"}
    assert {named["final.linear.weight"].role, named["final.modulation.weight"].role} == {"head"}
    assert named["patch.bias"].role == "vector"
    assert len(named) == len(roles)


def test_groups_keep_every_parameter_once_and_heads_their_factor() -> None:
    session = session_of("quickstart", "optimizer.name=muon", "optimizer.head_lr=0.5", "optimizer.adamw_lr=0.25")
    groups = session.optimizer.param_groups
    members = [parameter for group in groups for parameter in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {p for p in session.student.parameters() if p.requires_grad}
    of_losses = [group for group in groups if group["head"]]
    assert {group["role"] for group in of_losses} == {"head", "vector"}
    assert {group["lr_scale"] for group in of_losses} == {0.5 * 0.25}
    assert {group["lr_scale"] for group in groups if group["role"] == "matrix"} == {1.0}


def test_the_learning_rate_schedule_acts_on_both() -> None:
    session = session_of("digits/muon", "optimizer.adamw_lr=0.25")
    settings = session.recipe.optimizer.params
    rates = []
    for step in (0, 20, 40):
        set_learning_rate(session.optimizer, settings, step, 40)
        rates.append({group["role"]: group["lr"] for group in session.optimizer.param_groups})
    for rate in rates:
        assert rate["embedding"] == rate["head"] == rate["vector"] == pytest.approx(0.25 * rate["matrix"])
    assert [rate["matrix"] for rate in rates] == pytest.approx([6e-3, 3e-3, 0.0])


def test_a_restored_run_continues_with_the_same_bits(tmp_path: Path) -> None:
    straight = session_of()
    sessions.advance(straight, 4)
    half = session_of()
    sessions.advance(half, 2)
    sessions.save(half, tmp_path / "checkpoints")
    resumed, forgetful = session_of(), session_of()
    for session in (resumed, forgetful):
        sessions.restore_latest(session, tmp_path / "checkpoints")
    for state in forgetful.optimizer.state.values():
        if "momentum_buffer" in state:
            state["momentum_buffer"].zero_()
    for session in (resumed, forgetful):
        sessions.advance(session, 2)
    assert differing(sessions.state_of(resumed), sessions.state_of(straight)) == []
    assert "student.backbone.blocks.0.attention.qkv.weight" in differing(
        sessions.state_of(forgetful), sessions.state_of(straight)
    )


def differing(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> list[str]:
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


def test_the_plan_states_the_memory_that_the_state_takes() -> None:
    session = session_of("quickstart", "optimizer.name=muon")
    planned = plan(session.recipe)
    sessions.advance(session, 1)
    state = [value for entry in session.optimizer.state.values() for value in entry.values() if value.numel() > 1]
    untouched = [p for p in session.student.parameters() if p.requires_grad and p not in session.optimizer.state]
    kept = sum(value.nbytes for value in state) + sum(2 * p.nbytes for p in untouched)
    assert planned.memory.optimizer == kept
    assert planned.memory.optimizer != 2 * planned.memory.gradients


def test_each_process_computes_the_update() -> None:
    alone = plan(resolve("digits/muon", SMALL))
    assert alone.update_flops is not None
    assert alone.update_flops > 0
    params = MuonParams()
    assert params.flops([Matrix(48, 16, stacked=3)]) == 3 * params.flops([Matrix(16, 16)])
    assert MuonParams(split_qkv=False).flops([Matrix(48, 16, 3)]) == 5 * (4 * 16**2 * 48 + 2 * 16**3)
    assert plan(resolve("digits/dit", SMALL)).update_flops == 0


def test_a_torch_without_muon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.8.1+cpu" if name == "torch" else version(name))
    with pytest.raises(SdditError, match=r"torch 2\.9 or newer") as caught:
        resolve("digits/muon", SMALL)
    assert caught.value.problems[0].code == "SD-P211"
    monkeypatch.undo()
    session = session_of()
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SdditError, match=r"no torch\.optim\.Muon"):
        session.recipe.optimizer.build()([], torch.device("cpu"))


def test_a_network_without_matrices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Frame, "block_prefixes", ("nothing.",))
    with pytest.raises(SdditError, match="no parameter is a matrix"):
        session_of()


@pytest.mark.parametrize(
    ("role", "text"),
    [
        (ParameterRole("matrix"), "a matrix has two dimensions"),
        (ParameterRole("body"), "no role 'body'"),  # type: ignore[arg-type]
        (ParameterRole("vector", stacked=5), "does not hold 5 matrices"),
        ("matrix", "not a ParameterRole"),
    ],
)
def test_an_impossible_role_is_refused(monkeypatch: pytest.MonkeyPatch, role: Any, text: str) -> None:
    stated = Frame.parameter_role
    monkeypatch.setattr(
        Frame, "parameter_role", lambda self, name, p: role if name == "patch.bias" else stated(self, name, p)
    )
    with pytest.raises(SdditError, match=text) as caught:
        session_of()
    assert caught.value.problems[0].code == "SD-P220"
