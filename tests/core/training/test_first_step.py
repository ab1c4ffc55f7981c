"""Test the checks before the first step: legitimate losses pass, the run does not change, faults are named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sddit.errors import SdditError
from sddit.interfaces import Cost
from sddit.recipes.resolve import resolve
from sddit.testing import TOY_PAIR_RECIPE, toy_host
from sddit.testing.sessions import advance, state_of
from sddit.testing.toys.components import ToyAgreement, ToyLoss
from sddit.testing.toys.params import ToyAgreementParams, ToyLossParams
from sddit.training import first_step
from sddit.training.build import build_session
from sddit.training.findings import generator_states, same_state
from sddit.training.first_step import check_losses
from sddit.training.session import Session

Forward = Callable[..., Any]


@pytest.fixture
def new_session(tmp_path: Path) -> Callable[..., Session]:
    """Build sessions of the toy pair recipe: `new_session("train.batch=8")`."""
    path = tmp_path / "toy.toml"
    path.write_text(TOY_PAIR_RECIPE)
    host = toy_host()
    return lambda *overrides: build_session(resolve(path, overrides, host=host), torch.device("cpu"))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_run_does_not_change(new_session: Callable[..., Session]) -> None:
    session, control = new_session(), new_session()
    before = generator_states()
    assert check_losses(session) == []
    assert same_state(list(before.values()), list(generator_states().values()))
    assert all(parameter.grad is None for parameter in session.student.parameters())
    assert session.student.terms["agree"].waiting == []  # type: ignore[attr-defined]
    assert not session.student.training
    assert equal(state_of(session), state_of(control))
    advance(session, 3)
    advance(control, 3)
    assert equal(state_of(session), state_of(control))


@pytest.mark.parametrize("batch", ["1", "2", "3", "8"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_any_batch_and_precision_pass(batch: str, precision: str, new_session: Callable[..., Session]) -> None:
    assert check_losses(new_session(f"train.batch={batch}", f"train.precision={precision}")) == []


def changed(monkeypatch: pytest.MonkeyPatch, change: Forward) -> None:
    """`change(loss, ctx, views, outputs)` replaces the value of the toy loss."""
    monkeypatch.setattr(ToyLoss, "forward", change)


def squares(views: Any, outputs: Any) -> Tensor:
    error: Tensor = (outputs["student"].x0 - views["student"].x0).square().mean(dim=(1, 2, 3))
    return error


LEGITIMATE: dict[str, Forward] = {
    "only low noise": lambda self, ctx, views, outputs: squares(views, outputs) * (views["student"].t < 0.05),
    "only one class": lambda self, ctx, views, outputs: squares(views, outputs) * (views["student"].labels == 2),
    "only later": lambda self, ctx, views, outputs: squares(views, outputs) * (ctx.step > 1),
    "beyond a margin": lambda self, ctx, views, outputs: (
        (squares(views, outputs) - 1e3).relu() + (squares(views, outputs) - 0.5).relu()
    ),
    "keyed noise": lambda self, ctx, views, outputs: squares(views, outputs) * ctx.draws.uniform("toy/toy/x").float(),
    "equal outputs": lambda self, ctx, views, outputs: (
        (outputs["student"].raw - outputs["student"].raw.detach()).square().mean(dim=(1, 2, 3))
    ),
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_a_gradient_that_is_zero_at_first_is_accepted(
    name: str, new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, LEGITIMATE[name])
    if name == "equal outputs":  # whose gradient is 0 for all outputs, as nothing but the weights can show
        with pytest.raises(SdditError, match="no gradient to the student's outputs"):
            check_losses(new_session())
    else:
        assert check_losses(new_session()) == []


def test_a_head_that_starts_at_zero_is_accepted(
    new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session()
    nn.init.zeros_(session.student.terms["agree"].head.weight)  # type: ignore[attr-defined]
    assert check_losses(session) == []
    monkeypatch.setattr(ToyAgreement, "forward", detached_agreement)
    with pytest.raises(SdditError, match=r"a gradient only to its own head\.weight, head\.bias"):
        check_losses(session)


def detached_agreement(self: Any, ctx: Any, views: Any, outputs: Any) -> Tensor:
    value: Tensor = self.head(outputs["student"].taps["encoder"].patch.detach()).square().mean(dim=(1, 2))
    return value


def test_sharded_weights_are_built_again_as_a_whole(
    new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session("train.distributed=fsdp")
    monkeypatch.setattr(first_step, "FSDPModule", nn.Module)
    session.student.requires_grad_(False)  # as a stand-in for shards: what is checked is not this network
    whole = first_step.unsharded(session)
    assert whole.student is not session.student and whole.world is session.world
    assert equal(dict(whole.student.named_parameters()), dict(session.student.named_parameters()))
    assert check_losses(session) == []
    monkeypatch.setattr(ToyAgreement, "forward", detached_agreement)
    with pytest.raises(SdditError, match="no gradient to the student's outputs"):
        check_losses(session)


def test_a_probe_may_train_its_own_head_alone(
    new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyAgreement, "forward", detached_agreement)
    monkeypatch.setattr(ToyAgreementParams, "trains_network", False)
    assert check_losses(new_session()) == []


def test_a_loss_whose_weight_is_zero_at_first_is_checked(
    new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyAgreement, "forward", detached_agreement)
    ramp = "loss.agree.weight={start=0.0, end=1.0, shape='step', until=2}"
    with pytest.raises(SdditError, match="no gradient to the student's outputs"):
        check_losses(new_session(ramp))
    assert check_losses(new_session("loss.agree.weight=0")) == []


def test_all_faults_come_together(new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyAgreement, "forward", detached_agreement)
    monkeypatch.setattr(ToyAgreementParams, "cost", lambda *_: Cost())
    changed(monkeypatch, lambda self, ctx, views, outputs: squares(views, outputs).mean())
    with pytest.raises(SdditError) as caught:
        check_losses(new_session())
    whats = [problem.what for problem in caught.value.problems]
    assert len(whats) == 3, whats
    assert {problem.where for problem in caught.value.problems} == {"loss.agree", "loss.denoise"}


def test_numbers_that_the_network_makes_non_finite_are_not_blamed_on_the_loss(
    new_session: Callable[..., Session],
) -> None:
    session = new_session()
    with torch.no_grad():
        next(session.student.backbone.parameters()).fill_(float("nan"))
    assert check_losses(session) == []


COUPLED: dict[str, tuple[Forward, str]] = {
    "gathered": (lambda z, ctx: spread_of(ctx.gather(z)), ""),
    "local": (lambda z, ctx: spread_of(z), "the loss depends on the number of processes"),
    "local from the second step": (
        lambda z, ctx: spread_of(z if ctx.step else ctx.gather(z)),
        "the loss depends on the number of processes",
    ),
    "mean of local values": (lambda z, ctx: ctx.mean(spread_of(z)), "the loss depends on the number of processes"),
    "right value, wrong gradient": (
        lambda z, ctx: spread_of(ctx.gather(z.detach())) + (spread_of(z) - spread_of(z).detach()),
        "the gradient of the loss depends on the number of processes",
    ),
}


def of_class(self: Any, ctx: Any, views: Any, outputs: Any, *, least: int = 0, gather: bool) -> Tensor:
    """Attract the samples of a class to each other."""
    z, labels = outputs["student"].x0.flatten(1), views["student"].labels
    if gather:
        z, labels = ctx.gather(z), ctx.gather(labels)
    if len(z) < least:
        raise ValueError(f"too few: {len(z)}")
    pairs = (labels[:, None] == labels).to(z.dtype).tril(-1)
    return ((z[:, None] - z).square().mean(dim=-1) * pairs).sum() / (pairs.sum() + 1)


@pytest.mark.parametrize(("settings", "least"), [(["train.batch=16"], 8), (["train.batch=2"], 0)])
def test_a_loss_that_needs_many_samples_or_pairs_of_a_class_is_compared(
    settings: list[str], least: int, new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two samples of the second case are of two classes."""
    monkeypatch.setattr(ToyLossParams, "couples_samples", True)
    session = new_session("train.precision=fp64", *settings)
    monkeypatch.setattr(session.world, "size", 2)
    changed(monkeypatch, partialmethod(of_class, least=least, gather=True))
    assert check_losses(session) == []
    changed(monkeypatch, partialmethod(of_class, least=least, gather=False))
    with pytest.raises(SdditError, match="the loss depends on the number of processes"):
        check_losses(session)


def test_a_loss_that_needs_more_samples_than_a_batch_has_gives_a_note(
    new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyLossParams, "couples_samples", True)
    changed(monkeypatch, partialmethod(of_class, least=99, gather=False))
    (note,) = check_losses(new_session("train.batch=8"))
    assert note.endswith("is not checked before the first step: with 8 samples it raised ValueError: too few: 8")


def spread_of(z: Tensor) -> Tensor:
    z = torch.nn.functional.normalize(z, dim=1)
    return (2 * (z @ z.T - 1)).exp().mean().log()


@pytest.mark.parametrize("name", COUPLED)
def test_a_coupled_loss_is_compared_on_two_processes(
    name: str, new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = COUPLED[name]
    changed(monkeypatch, lambda self, ctx, views, outputs: change(outputs["student"].x0.flatten(1), ctx))
    monkeypatch.setattr(ToyLossParams, "couples_samples", True)
    session = new_session()
    assert check_losses(session) == []  # one process alone
    monkeypatch.setattr(session.world, "size", 2)
    if not said:
        assert check_losses(session) == []
        return
    with pytest.raises(SdditError, match=said) as caught:
        check_losses(session)
    assert "ctx.gather(z)" in caught.value.problems[0].fix
    monkeypatch.setattr(ToyLossParams, "per_process", True)
    assert check_losses(session) == []


def test_a_buffer_that_differs_between_processes_is_named(
    new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session()
    monkeypatch.setattr(session.world, "size", 2)
    assert check_losses(session) == []
    forward = ToyAgreement.forward

    def local(self: Any, ctx: Any, views: Any, outputs: Any) -> Tensor:
        import dataclasses

        return forward(self, dataclasses.replace(ctx, mean=lambda x: x), views, outputs)

    monkeypatch.setattr(ToyAgreement, "forward", local)
    with pytest.raises(SdditError, match="a buffer depends on the number of processes: centre"):
        check_losses(session)


def test_the_run_id_of_a_local_loss_depends_on_the_number_of_processes(
    new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    recipe = new_session().recipe
    assert replace(recipe, processes=2).run_id == recipe.run_id
    assert "processes" not in recipe.to_json()
    monkeypatch.setattr(ToyLossParams, "per_process", True)
    assert replace(recipe, processes=2).run_id != recipe.run_id
    assert replace(recipe, processes=2).to_json()["processes"] == 2


def test_a_coupled_loss_may_need_more_samples_than_the_check_takes(
    new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, lambda self, ctx, views, outputs: squares(views, outputs).topk(6).values.mean())
    monkeypatch.setattr(ToyLossParams, "couples_samples", True)
    assert check_losses(new_session()) == []
    monkeypatch.setattr(ToyLossParams, "couples_samples", False)
    with pytest.raises(SdditError, match="raised an error"):
        check_losses(new_session())
