"""Test the training loop: exact resume, accumulation equals one batch, a non-finite step changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sddit.errors import SdditError
from sddit.interfaces import Needs, Want
from sddit.recipes.resolve import resolve
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import Content
from sddit.storage.tensors import pack, unpack
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE, toy_host
from sddit.training.build import build_session
from sddit.training.loop import train
from sddit.training.session import Session
from sddit.training.state import checkpoint_files, restore

STEPS = 6
EMA = "\n[ema.main]\ndecay = 0.9\nramp = true\n"


class Silent:
    """Callbacks that stop after a number of steps, and keep the rows of the log."""

    def __init__(self, until: int) -> None:
        self.until = until
        self.rows: list[Mapping[str, float]] = []

    def logged(self, session: Session, row: Mapping[str, float]) -> None:
        self.rows.append(row)

    def stepped(self, session: Session) -> None:
        if session.step == self.until:
            raise StopIteration


@pytest.fixture
def new_session(tmp_path: Path) -> Callable[..., Session]:
    """Build sessions of the toy pair recipe, with a teacher, a mask and an EMA: `new_session("train.batch=8")`."""
    path = tmp_path / "toy.toml"
    path.write_text(TOY_PAIR_RECIPE.replace("steps = 4\nbatch", f"steps = {STEPS}\nlog_every = 2\nbatch") + EMA)
    host = toy_host()

    def make(*overrides: str) -> Session:
        return build_session(resolve(path, overrides, host=host), torch.device("cpu"))

    return make


def run_to(session: Session, step: int) -> list[Mapping[str, float]]:
    """Train until `step` steps are taken. Returns the rows of the log."""
    callbacks = Silent(step)
    with suppress(StopIteration):
        train(session, callbacks)
    assert session.step == step
    return callbacks.rows


def everything(session: Session) -> dict[str, Tensor]:
    """Return copies of all tensors that the next steps depend on."""
    assert session.teacher is not None
    found = {f"student.{k}": v for k, v in session.student.state_dict().items()}
    found |= {f"teacher.{k}": v for k, v in session.teacher.tensors().items()}
    found |= {f"ema.{k}": v for label in session.emas for k, v in session.emas[label].module.state_dict().items()}
    for index, entries in session.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
    return {name: value.clone() for name, value in found.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_clock(rows: list[Mapping[str, float]]) -> list[dict[str, float]]:
    clocks = {"seconds", "images_per_second"}
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows]


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_a_resumed_run_ends_in_the_same_bits_and_rows(
    stop: int, new_session: Callable[..., Session], tmp_path: Path
) -> None:
    whole = new_session()
    rows = run_to(whole, STEPS)
    first = new_session()
    begun = run_to(first, stop)
    store = Store(tmp_path / "checkpoints", keep=1)
    store.save(stop, checkpoint_files(first, {}))
    second = new_session()
    found = store.latest()
    assert found is not None
    restore(second, found)
    ended = run_to(second, STEPS)
    assert equal(everything(second), everything(whole))
    assert without_clock(begun + ended) == without_clock(rows)


FORGET: dict[str, Callable[[Session], object]] = {
    "optimizer": lambda s: s.optimizer.state.clear(),
    "teacher backbone": lambda s: [p.data.zero_() for p in s.teacher.backbone.parameters()],  # type: ignore[union-attr]
    "teacher's copy of the head": lambda s: [p.data.zero_() for p in s.teacher.modules["agree"]["head"].parameters()],  # type: ignore[union-attr]
    "buffer of a loss": lambda s: [b.zero_() for b in s.student.terms["agree"].buffers()],
    "generation EMA": lambda s: [p.data.zero_() for p in s.emas["main"].module.parameters()],
    "step": lambda s: setattr(s, "step", s.step - 1),
    "head of a loss": lambda s: [p.data.zero_() for p in s.student.terms["agree"].parameters()],
}


@pytest.mark.parametrize("item", FORGET)
def test_each_item_of_the_state_matters(item: str, new_session: Callable[..., Session]) -> None:
    whole = new_session()
    run_to(whole, STEPS)
    broken = new_session()
    run_to(broken, 3)
    FORGET[item](broken)
    run_to(broken, STEPS)
    assert not equal(everything(broken), everything(whole))


def test_a_missing_tensor_is_refused_not_rebuilt(new_session: Callable[..., Session], tmp_path: Path) -> None:
    session = new_session()
    run_to(session, 2)
    for name in ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "teacher.safetensors"):
        files = checkpoint_files(session, {})
        del files[name]
        store = Store(tmp_path / name, keep=1)
        store.save(2, files)
        found = store.latest()
        assert found is not None
        with pytest.raises(SdditError, match="SD-C410"):
            restore(new_session(), found)


@pytest.mark.parametrize(
    "name", ["step", "seconds", "tally", "optimizer", "optimized", "counted", "skipped", "log_cursor"]
)
def test_a_missing_number_is_refused_not_rebuilt(
    name: str, new_session: Callable[..., Session], tmp_path: Path
) -> None:
    session = new_session()
    run_to(session, 2)
    files = checkpoint_files(session, {})
    state = json.loads(bytes_of(files["state.json"]))
    for step, missing in ((1, ""), (2, name)):
        kept = {key: value for key, value in state.items() if key != missing}
        Store(tmp_path / "c", keep=2).save(step, {**files, "state.json": json.dumps(kept).encode()})
    restore(new_session(), Store(tmp_path / "c", keep=2).open(1))
    with pytest.raises(SdditError, match=rf"SD-C410(.|\n)*{name} is missing"):
        restore(new_session(), Store(tmp_path / "c", keep=2).open(2))


def bytes_of(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.make()


def test_an_optimizer_without_one_of_its_moments_is_refused(
    new_session: Callable[..., Session], tmp_path: Path
) -> None:
    session = new_session()
    run_to(session, 2)
    files = checkpoint_files(session, {})
    whole = unpack(bytes_of(files["optimizer.safetensors"]))
    for name in ("0.exp_avg", "3.exp_avg_sq", "2.step"):
        kept = {key: value for key, value in whole.items() if key != name}
        store = Store(tmp_path / name, keep=1)
        store.save(2, {**files, "optimizer.safetensors": pack(kept)})
        with pytest.raises(SdditError, match=f"SD-C410(.|\\n)*parameter {name[0]} is missing"):
            restore(new_session(), store.open(2))


def test_an_optimizer_without_a_parameter_of_the_run_is_refused(
    new_session: Callable[..., Session], tmp_path: Path
) -> None:
    session = new_session()
    run_to(session, 2)
    files = checkpoint_files(session, {})
    kept = {
        name: value
        for name, value in unpack(bytes_of(files["optimizer.safetensors"])).items()
        if not name.startswith("0.")
    }
    store = Store(tmp_path / "c", keep=1)
    store.save(2, {**files, "optimizer.safetensors": pack(kept)})
    found = store.latest()
    assert found is not None
    with pytest.raises(SdditError, match="optimizer"):
        restore(new_session(), found)


def test_weights_that_are_not_finite_are_refused(new_session: Callable[..., Session], tmp_path: Path) -> None:
    session = new_session()
    run_to(session, 2)
    files = checkpoint_files(session, {})
    bad = {name: torch.full_like(v, float("nan")) for name, v in unpack(bytes_of(files["ema.safetensors"])).items()}
    store = Store(tmp_path / "c", keep=1)
    store.save(2, {**files, "ema.safetensors": pack(bad)})
    found = store.latest()
    assert found is not None
    with pytest.raises(SdditError, match="SD-C450"):
        restore(new_session(), found)


def test_a_parameter_that_never_had_a_gradient_has_no_moments(new_session: Callable[..., Session]) -> None:
    """Otherwise its bias correction ends before it starts to learn, and its first steps are several times too long."""
    session = new_session("loss.agree.weight={start=0.0, end=1.0, shape='step', until=3}")
    run_to(session, 3)
    assert not any(p in session.optimizer.state for p in session.student.terms["agree"].parameters())
    run_to(session, 4)
    moments = [session.optimizer.state[p] for p in session.student.terms["agree"].parameters()]
    assert all(int(state["step"]) == 1 for state in moments)


def test_gradient_ratios_do_not_depend_on_the_order_of_tables(
    new_session: Callable[..., Session], tmp_path: Path
) -> None:
    toy = (tmp_path / "toy.toml").read_text()
    label = toy.index("[loss.agree]")
    turned = toy[label : toy.index("[ema.main]")] + toy[:label] + toy[toy.index("[ema.main]") :]
    (tmp_path / "turned.toml").write_text(turned)
    rows = run_to(new_session(), 2)
    host = toy_host()
    other = build_session(resolve(tmp_path / "turned.toml", host=host), torch.device("cpu"))
    assert without_clock(run_to(other, 2)) == without_clock(rows)
    assert "grad_ratio/agree" in rows[0]
    assert "grad_ratio/agree" in run_to(new_session(), STEPS)[-1]  # a short run also measures its last step


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_equals_one_batch(micro: int, new_session: Callable[..., Session]) -> None:
    settings = ["train.precision=fp64", "train.batch=8"]
    whole, parts = new_session(*settings), new_session(*settings, f"train.micro_batch={micro}")
    other = new_session(*settings, f"train.micro_batch={micro}", "seed=1")
    for session in (whole, parts, other):
        run_to(session, 3)
    a, b, c = everything(whole), everything(parts), everything(other)
    assert max(distance(a[k], b[k]) for k in a) < 1e-12
    assert max(distance(a[k], c[k]) for k in a) > 1e-3


def distance(a: Tensor, b: Tensor) -> float:
    scale = max(1.0, float(a.abs().max())) if a.numel() else 1.0
    return float((a.double() - b.double()).abs().max()) / scale if a.numel() else 0.0


@pytest.mark.parametrize("where", ["weight", "loss"])
def test_a_non_finite_step_changes_nothing(
    where: str, new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session()
    run_to(session, 2)
    before = everything(session)
    term = session.student.terms["agree"]
    forward = type(term).forward
    if where == "loss":
        monkeypatch.setattr(type(term), "forward", lambda *a: forward(*a) * float("nan"))
    else:  # a finite loss whose gradient is infinite
        monkeypatch.setattr(type(term), "forward", lambda *a: forward(*a) + infinite_slope(forward(*a)))
    with pytest.raises(SdditError, match="SD-N501"):
        run_to(session, 4)
    assert session.step == 2
    assert equal(everything(session), before)
    monkeypatch.undo()
    run_to(session, STEPS)
    untouched = new_session()
    run_to(untouched, STEPS)
    assert equal(everything(session), everything(untouched))  # what the failed step staged is forgotten too


def infinite_slope(value: Tensor) -> Tensor:
    """0 with an infinite derivative: sqrt at 0."""
    return (value - value.detach()).clamp(min=0).sqrt()


def test_initial_weights_do_not_depend_on_the_losses(new_session: Callable[..., Session]) -> None:
    with_term, without = new_session(), new_session("loss.agree=false")
    a, b = with_term.student.backbone.state_dict(), without.student.backbone.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert without.teacher is None
    c = new_session("seed=1").student.backbone.state_dict()
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_a_loss_of_weight_zero_equals_no_loss(new_session: Callable[..., Session]) -> None:
    zero, absent, counted = new_session("loss.agree.weight=0.0"), new_session("loss.agree=false"), new_session()
    assert "agree" not in zero.student.terms
    for session in (zero, absent, counted):
        run_to(session, 3)
    a, b, c = (s.student.backbone.state_dict() for s in (zero, absent, counted))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_a_loss_that_has_ended_changes_no_buffer(new_session: Callable[..., Session]) -> None:
    session = new_session("loss.agree.until=2")
    run_to(session, 2)
    head = [p.clone() for p in session.student.terms["agree"].parameters()]
    buffers = [b.clone() for b in session.student.terms["agree"].buffers()]
    for group in session.optimizer.param_groups:
        group["weight_decay"] = 0.0
    rows = run_to(session, STEPS)
    assert all("loss/agree" not in row for row in rows)
    assert all(torch.equal(a, b) for a, b in zip(buffers, session.student.terms["agree"].buffers(), strict=True))
    assert head, "the toy loss has a head"


def test_the_teacher_has_no_gradient_and_follows_its_closed_form(new_session: Callable[..., Session]) -> None:
    session = new_session("teacher.momentum=0.75")
    assert session.teacher is not None
    expected = {k: v.clone() for k, v in session.teacher.backbone.named_parameters()}
    trained = {id(p) for group in session.optimizer.param_groups for p in group["params"]}
    for step in range(3):
        run_to(session, step + 1)
        now = dict(session.student.backbone.named_parameters())
        expected = {k: 0.75 * v + 0.25 * now[k].detach() for k, v in expected.items()}
    for name, parameter in session.teacher.backbone.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-7)
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert id(parameter) not in trained
    assert not session.teacher.backbone.training


def test_the_generation_ema_is_the_closed_form_and_not_the_teacher(new_session: Callable[..., Session]) -> None:
    session = new_session("train.precision=fp64", "ema.main.ramp=false", "teacher.momentum=0.5")
    expected = {k: v.clone() for k, v in session.emas["main"].module.named_parameters()}
    for step in range(3):
        run_to(session, step + 1)
        now = dict(session.student.backbone.named_parameters())
        expected = {k: 0.9 * v + 0.1 * now[k].detach() for k, v in expected.items()}
    found = dict(session.emas["main"].module.named_parameters())
    assert max(distance(found[k], expected[k]) for k in found) < 1e-12
    assert session.teacher is not None
    teacher = dict(session.teacher.backbone.named_parameters())
    assert any(not torch.equal(teacher[k], found[k]) for k in teacher)


def test_a_window_counts_only_samples_inside_it(new_session: Callable[..., Session]) -> None:
    nothing = new_session("loss.agree.window=[0.02, 0.0201]")
    rows = run_to(nothing, 2)
    assert rows[0]["loss/agree"] == 0.0
    everything_in = run_to(new_session("loss.agree.window=[0.02, 20.0]"), 2)
    assert everything_in[0]["loss/agree"] == pytest.approx(run_to(new_session(), 2)[0]["loss/agree"], rel=1e-6)


def test_the_learning_rate_warms_up_and_follows_its_schedule(new_session: Callable[..., Session]) -> None:
    session = new_session(
        "optimizer.lr={start=0.8, end=0.2}", "optimizer.warmup=2", "optimizer.head_lr=0.5", "train.log_every=1"
    )
    rates = [row["lr"] for row in run_to(session, STEPS)]
    line = [0.8 - 0.6 * step / STEPS for step in range(STEPS)]
    assert rates == pytest.approx([line[0] / 2, *line[1:]])
    rate = {id(p): group["lr"] for group in session.optimizer.param_groups for p in group["params"]}
    assert all(rate[id(p)] == pytest.approx(line[-1]) for p in session.student.backbone.parameters())
    assert all(rate[id(p)] == pytest.approx(line[-1] / 2) for p in session.student.terms.parameters())


def test_clipping_bounds_the_step_and_is_off_by_default(new_session: Callable[..., Session]) -> None:
    free, clipped = new_session("train.log_every=1"), new_session("train.log_every=1", "optimizer.clip=1e-6")
    before = [p.clone() for p in clipped.student.parameters()]
    for session in (free, clipped):
        run_to(session, 1)
    norm = torch.stack([s["exp_avg"].norm() for s in clipped.optimizer.state.values()]).norm()
    assert float(norm) < 1.01e-6  # exp_avg is (1 - beta1) times the clipped gradient
    assert float(torch.stack([s["exp_avg"].norm() for s in free.optimizer.state.values()]).norm()) > 1e-4
    assert any(not torch.equal(a, b) for a, b in zip(before, clipped.student.parameters(), strict=True))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda v: v.mean(), "wrong shape"),
        (lambda v: v.detach(), "no gradient"),
        (lambda v: 3.0, "did not return a tensor"),
        (lambda v: v.argsort(), "integers"),
    ],
)
def test_a_malformed_loss_is_named_at_the_first_step(
    broken: Callable[[Tensor], object],
    message: str,
    new_session: Callable[..., Session],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = new_session()
    term = type(session.student.terms["agree"])
    forward = term.forward
    monkeypatch.setattr(term, "forward", lambda *a: broken(forward(*a)))
    with pytest.raises(SdditError, match=message):
        run_to(session, 1)
    later = new_session("loss.agree.weight={start=0.0, end=1.0, shape='step', until=2}")
    run_to(later, 2)
    with pytest.raises(SdditError, match=message):
        run_to(later, 3)


@pytest.mark.parametrize(
    ("kind", "component", "base"),
    [("backbone", "backbone", "Backbone"), ("loss", "loss.agree", "LossTerm")],
)
def test_a_network_or_loss_that_is_not_a_subclass_is_refused(
    kind: str, component: str, base: str, new_session: Callable[..., Session]
) -> None:
    recipe = new_session().recipe
    chosen = recipe.backbone if kind == "backbone" else recipe.losses["agree"]
    other = replace(chosen, component=replace(chosen.component, factory=lambda *_, **__: torch.nn.Linear(1, 1)))
    changed = {"backbone": other} if kind == "backbone" else {"losses": {**recipe.losses, "agree": other}}
    with pytest.raises(SdditError, match=rf"not a subclass of sddit\.{base}") as refused:
        build_session(replace(recipe, **changed), torch.device("cpu"))
    (problem,) = refused.value.problems
    assert (problem.code, problem.where) == ("SD-P220", component)
    assert problem.got.endswith("Linear") and f"sddit.{base}" in problem.fix


def test_state_is_json_without_nan(new_session: Callable[..., Session]) -> None:
    session = new_session()
    run_to(session, 1)
    state = json.loads(bytes_of(checkpoint_files(session, {"log_cursor": 7})["state.json"]))
    assert (state["step"], state["images"], state["log_cursor"]) == (1, 8, 7)


def test_a_teacher_whose_output_is_read_keeps_its_output(
    new_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session()
    assert session.teacher is not None
    params = type(session.objective.params["agree"])
    reads_output = Needs(Want(taps=("encoder",)), Want(output=True, taps=("encoder",)))
    monkeypatch.setattr(params, "needs", lambda self: reads_output)
    whole = new_session()
    assert whole.teacher is not None
    names = set(dict(whole.teacher.backbone.named_parameters()))
    assert names == set(dict(whole.student.backbone.named_parameters()))
    assert names > set(dict(session.teacher.backbone.named_parameters()))
    run_to(whole, 1)
