"""A loss changes the network through its gradient alone, and its frozen modules not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sddit import hookimpl
from sddit.errors import SdditError
from sddit.interfaces import Component, Cost, LossParams, Needs, OptimizerParams, Want
from sddit.losses import LossTerm, frozen_modules
from sddit.recipes.costs import plan
from sddit.recipes.resolve import resolve
from sddit.testing import ConformanceError, check
from sddit.testing.sessions import advance, restore_latest, save, state_of
from sddit.testing.toys.plugin import TOY_RECIPE, toy_host
from sddit.training.build import build_session, parameter_groups
from sddit.training.optimization import clip_gradients
from sddit.training.session import Session

WIDTH = 16


class HeadParams(LossParams):
    """A large head."""

    def needs(self) -> Needs:
        return Needs(Want(taps=("encoder",)))

    def cost(self, *_: Any, **__: Any) -> Cost:
        return Cost(parameters=(WIDTH + 1) * WIDTH, frozen=4 * WIDTH + 2 * WIDTH)


class DetachedHead(LossTerm):
    """A head on tokens that are detached from the network."""

    def __init__(self, params: HeadParams, **_: object) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, ctx: Any, views: Any, outputs: Mapping[str, Any]) -> Tensor:
        return 100 * (self.head(outputs["student"].taps["encoder"].patch.detach()) - 1).square().mean(dim=(1, 2))


class Target(nn.Module):
    """A frozen network of the clean image, with layers that act differently in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(4, WIDTH, bias=False)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.scale(x)))


class FixedTarget(LossTerm):
    """The tokens' mean through a head, against a frozen network."""

    def __init__(self, params: HeadParams, *, widths: Mapping[Any, int], **_: object) -> None:
        super().__init__()
        self.target = Target().requires_grad_(False)
        self.head = nn.Linear(widths["encoder"], WIDTH)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        parameter.zero_()

    def forward(self, ctx: Any, views: Mapping[str, Any], outputs: Mapping[str, Any]) -> Tensor:
        view = views["student"]
        goal = self.target(view.x0.flatten(1)[:, :4])  # [B, WIDTH]
        found = self.head(outputs["student"].taps["encoder"].patch.mean(dim=1))
        return (found.to(view.x.dtype) - goal.to(view.x.dtype)).square().mean(dim=1)


class FixedTargetParams(HeadParams):
    def cost(self, backbone: Any, *_: Any, **__: Any) -> Cost:
        return Cost(parameters=(backbone.width("encoder") + 1) * WIDTH, frozen=4 * WIDTH + 2 * WIDTH)


class Plugin:
    @hookimpl
    def register_losses(self, registry: Any) -> None:
        registry.add("detached", DetachedHead, params=HeadParams, summary="For a test.")
        registry.add("fixed", FixedTarget, params=FixedTargetParams, summary="For a test.")


Make = Callable[..., Session]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Build sessions of the toy recipe with these losses: `make("loss.x.name=fixed")`."""
    path = tmp_path / "toy.toml"
    path.write_text(TOY_RECIPE.replace("steps = 4\nbatch", "steps = 100\nbatch") + "\n[ema.main]\ndecay = 0.9\n")
    host = toy_host()
    host.add("mine", Plugin())

    def build(*overrides: str) -> Session:
        return build_session(resolve(path, overrides, host=host), torch.device("cpu"))

    return build


def network(session: Session) -> dict[str, Tensor]:
    """Return the weights of the network and of its EMA."""
    found = {f"network.{k}": v for k, v in session.student.backbone.state_dict().items()}
    return found | {f"ema.{k}": v for k, v in session.emas["main"].module.state_dict().items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


VARIANTS = [
    ["optimizer.clip=1.0"],
    ["optimizer.clip=0.001", "optimizer.weight_decay=0.1"],
    ["optimizer.clip=1.0", "train.micro_batch=4", "train.precision=bf16"],
]


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_loss_without_a_gradient_to_the_network_leaves_its_bits(make: Make, settings: list[str]) -> None:
    def ends(scope: str) -> list[dict[str, Tensor]]:
        sessions = []
        for own in ([], ["loss.head.name=detached"]):
            sessions.append(make(*own, *settings, "optimizer.lr=0.01", f"optimizer.clip_scope={scope}"))
            advance(sessions[-1], 50)
        return [network(session) for session in sessions]

    assert equal(*ends("group"))
    assert not equal(*ends("all"))  # the control: there, the head's gradient takes part in the norm


def test_group_is_the_default_and_clips_each_group_to_the_norm() -> None:
    assert OptimizerParams().clip_scope == "group"
    groups = {name: [torch.zeros(3, requires_grad=True)] for name in ("backbone", "loss.a", "loss.b")}
    for size, (parameter,) in zip((10.0, 0.1, 4.0), groups.values(), strict=True):
        parameter.grad = torch.tensor([0.0, size, 0.0])
    clip_gradients(OptimizerParams(clip=2.0), groups, torch.tensor(10.8))
    norms = [float(parameter.grad.norm()) for (parameter,) in groups.values() if parameter.grad is not None]
    assert norms == pytest.approx([2.0, 0.1, 2.0], rel=1e-5)


def test_a_frozen_module_is_not_trained_and_stays_in_evaluation_mode(make: Make) -> None:
    session = make("loss.x.name=fixed")
    term = session.student.terms["x"]
    target = {name: value.clone() for name, value in term.target.state_dict().items()}
    assert bool(target["scale.weight"].any())  # init_parameter is for what is trained
    assert not bool(term.head.weight.any())
    advance(session, 3)
    assert equal(term.target.state_dict(), target)  # no running statistics either
    assert bool(term.head.weight.any())
    assert all(parameter.grad is None for parameter in term.target.parameters())
    held = {parameter for group in session.optimizer.param_groups for parameter in group["params"]}
    assert held.isdisjoint(term.target.parameters())
    assert held == set(session.student.backbone.parameters()) | set(term.head.parameters())
    assert session.student.train().terms["x"].head.training
    assert not any(module.training for module in term.target.modules())
    assert term.training


def test_without_evaluation_mode_a_frozen_module_changes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.setattr(LossTerm, "train", nn.Module.train)
    session = make("loss.x.name=fixed")
    advance(session, 1)
    assert int(session.student.terms["x"].target.norm.num_batches_tracked) == 1


def test_the_largest_frozen_modules_are_found() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Dropout()), nn.Dropout())
    net[1].requires_grad_(False)
    assert list(frozen_modules(net)) == [net[1]]
    net[1][0].requires_grad_(True)
    assert list(frozen_modules(net)) == [net[1][1]]
    assert list(frozen_modules(nn.Sequential(nn.Dropout()))) == []


def test_a_resumed_run_with_a_frozen_module_has_the_same_bits(make: Make, tmp_path: Path) -> None:
    whole, first = make("loss.x.name=fixed"), make("loss.x.name=fixed")
    advance(whole, 6)
    with torch.no_grad():  # weights that the constructor cannot rebuild, as those of a file that was changed
        for session in (first, other := make("loss.x.name=fixed")):
            session.student.terms["x"].target.scale.weight.mul_(1 + (session is other))
    advance(first, 3)
    save(first, tmp_path)
    restore_latest(other, tmp_path)
    advance(other, 3)
    assert equal(state_of(other), state_of(whole))


def test_an_optimizer_state_that_counts_frozen_parameters_is_refused(make: Make, tmp_path: Path) -> None:
    """Earlier versions numbered them too, so that the states of the others would go to the wrong parameters."""
    session = make("loss.x.name=fixed")
    term = session.student.terms["x"]
    term.target.requires_grad_(True)
    groups = parameter_groups(session.recipe, session.student)
    session.optimizer = session.recipe.optimizer.build()(groups, session.device)
    term.target.requires_grad_(False)
    advance(session, 1)
    save(session, tmp_path)
    with pytest.raises(SdditError, match="SD-C410") as caught:
        restore_latest(make("loss.x.name=fixed"), tmp_path)
    assert "a state of number" in str(caught.value)


def test_frozen_parameters_are_not_counted_as_trained(make: Make) -> None:
    trained, frozen = (WIDTH + 1) * WIDTH, 6 * WIDTH
    alone, cost = plan(make().recipe), plan(make("loss.x.name=fixed").recipe)
    assert (cost.heads_parameters["x"], cost.frozen_parameters) == (trained, frozen)
    assert cost.memory.gradients == alone.memory.gradients + 4 * trained
    assert cost.memory.optimizer == alone.memory.optimizer + 8 * trained
    assert cost.memory.weights == alone.memory.weights + 4 * (trained + frozen)


@pytest.mark.parametrize(
    ("stated", "right"),
    [
        (Cost((12 + 1) * WIDTH, frozen=6 * WIDTH), True),
        (Cost((12 + 1) * WIDTH), True),
        (Cost((12 + 1) * WIDTH + 6 * WIDTH), False),
        (Cost((12 + 1) * WIDTH, frozen=5), False),
    ],
)
def test_the_kit_compares_the_trained_and_the_frozen_parameters(stated: Cost, right: bool) -> None:
    class Stated(FixedTargetParams):
        def cost(self, *_: Any, **__: Any) -> Cost:
            return stated

    component = Component(kind="losses", name="fixed", factory=FixedTarget, params=Stated, summary="For a test.")
    if right:
        check(component)
        return
    with pytest.raises(ConformanceError, match=r"cost\(\) states another number of (frozen )?parameters"):
        check(component)
