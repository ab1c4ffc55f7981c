"""Test the align loss: distances, targets, masks, heads, control arm, monitors and cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sddit.errors import SdditError
from sddit.interfaces import BackboneParams, Context, Outputs, Shapes, Tokens, View, ViewSpec
from sddit_alignment import targets
from sddit_alignment.loss import Align
from sddit_alignment.params import AlignParams

B, N, D, E = 5, 16, 6, 10
GRID, IMAGE = (4, 4), (2, 8, 8)
VISIBLE = torch.stack(
    [torch.randperm(N, generator=torch.Generator().manual_seed(i))[:10].sort().values for i in range(B)]
)


def numbers(*shape: int, key: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def term_of(**keys: Any) -> Align:
    torch.manual_seed(0)
    given = {"mean": [0.3, -0.2], "std": [0.5, 2.0]}
    params = AlignParams.model_validate(keys)
    return Align(
        params, widths={0.3: D, 0.7: D if params.head == "none" else E}, grid=GRID, image=IMAGE, **given
    ).double()


def context() -> Context:
    return Context(step=0, total_steps=100, schedule=None, draws=None, num_classes=3)


def view(network: str, visible: Tensor | None = None) -> View:
    x0, t = numbers(B, *IMAGE, key=9), torch.ones(B, dtype=torch.float64)
    return View(network=network, x=x0, t=t, labels=torch.zeros(B).long(), x0=x0, noise=x0, visible=visible)


def value(term: Align, student: Tensor, target: Tensor, visible: Tensor | None = None, full: bool = False) -> Tensor:
    """Return the loss for tokens of all places; the student shows those at `visible`, or with `full` has all."""
    tokens = Tokens(student) if visible is None or full else Tokens(Tokens(student).at(visible), visible)
    views = {"student": view("student", visible), "teacher": view("teacher")}
    outputs = {"student": Outputs(taps={0.3: tokens}), "teacher": Outputs(taps={0.7: Tokens(target)})}
    if term.params.source != "teacher":
        del views["teacher"], outputs["teacher"]
        outputs["student"].taps[0.7] = Tokens(target)
    return term(context(), views, outputs)


STUDENT, TARGET, WIDE = numbers(B, N, D, key=1), numbers(B, N, D, key=2), numbers(B, N, E, key=3)


@pytest.mark.parametrize("source", ["teacher", "self"])
def test_cosines_by_hand_at_the_visible_tokens(source: str) -> None:
    term = term_of(source=source, head="none")
    expected = []
    for b in range(B):
        pairs = [(STUDENT[b, i], TARGET[b, i]) for i in VISIBLE[b]]
        expected.append(1 - sum(x @ y / (x @ x).sqrt() / (y @ y).sqrt() for x, y in pairs) / len(pairs))
    torch.testing.assert_close(value(term, STUDENT, TARGET, VISIBLE), torch.stack(expected), rtol=1e-12, atol=0)
    torch.testing.assert_close(value(term, STUDENT, TARGET, VISIBLE, full=True), torch.stack(expected))
    shifted = value(term, STUDENT, TARGET.roll(1, dims=1), VISIBLE)
    assert (shifted - torch.stack(expected)).abs().min() > 1e-3
    assert (value(term, STUDENT, TARGET) - torch.stack(expected)).abs().min() > 1e-4


def test_cosines_over_tokens_by_hand() -> None:
    found = value(term_of(head="none", axis="token"), STUDENT, TARGET)
    norms = STUDENT.square().sum(1).sqrt() * TARGET.square().sum(1).sqrt()
    torch.testing.assert_close(found, (1 - (STUDENT * TARGET).sum(1) / norms).mean(1), rtol=1e-12, atol=0)
    assert not torch.allclose(found, value(term_of(head="none"), STUDENT, TARGET), rtol=1e-3)


def test_other_distances_by_hand() -> None:
    error = (STUDENT - TARGET).abs()
    huber = torch.where(error < 0.05, error**2 / 0.1, error - 0.025)
    for keys, expected in (
        ({"metric": "smooth_l1"}, huber),
        ({"metric": "smooth_l1", "beta": 0.0}, error),
        ({"metric": "mse"}, error**2),
    ):
        found = value(term_of(head="none", **keys), STUDENT, TARGET)
        torch.testing.assert_close(found, expected.mean((1, 2)), rtol=1e-12, atol=0)
        assert not torch.allclose(found, 1.001 * expected.mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("keys", [{"head_layers": 4, "head_width": 7}, {}, {"head": "conv"}])
def test_the_head_maps_the_student_only(keys: dict[str, Any]) -> None:
    term, bare = term_of(**keys), term_of(head="none")
    mapped = term.head(STUDENT, None)
    assert mapped.shape == (B, N, E)
    torch.testing.assert_close(value(term, STUDENT, WIDE), value(bare, mapped, WIDE), rtol=1e-12, atol=0)
    value(term, STUDENT, WIDE).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in term.parameters())


def test_the_default_width_is_the_sum_and_the_activation_silu() -> None:
    first, _, last = term_of().head.mlp
    assert tuple(first.weight.shape) == (D + E, D) and tuple(last.weight.shape) == (E, D + E)
    hidden = STUDENT @ first.weight.T + first.bias
    expected = (hidden * hidden.sigmoid()) @ last.weight.T + last.bias
    torch.testing.assert_close(term_of().head(STUDENT, None), expected, rtol=1e-12, atol=1e-14)


def test_the_convolution_sees_neighbours_and_zeros_in_place_of_hidden_tokens() -> None:
    head = term_of(head="conv").head
    shown = torch.zeros_like(STUDENT).scatter(1, VISIBLE[..., None].expand(-1, -1, D), Tokens(STUDENT).at(VISIBLE))
    everywhere = head(shown, None)
    found = head(Tokens(STUDENT).at(VISIBLE), VISIBLE)
    torch.testing.assert_close(found, Tokens(everywhere).at(VISIBLE), rtol=1e-12, atol=1e-14)
    changed = STUDENT.clone()
    changed[:, 5] += 1  # row 1, column 1 of the grid
    differs = (head(changed, None) - head(STUDENT, None)).abs().amax(-1)[0] > 1e-9
    assert differs.view(GRID).tolist() == [[True] * 3 + [False]] * 3 + [[False] * 4]


def test_no_gradient_reaches_the_targets() -> None:
    for source in ("teacher", "self"):
        student, target = STUDENT.clone().requires_grad_(), TARGET.clone().requires_grad_()
        value(term_of(source=source, head="none"), student, target).sum().backward()
        assert student.grad is not None and student.grad.abs().min() > 0
        assert target.grad is None


def test_targets_normalized_over_the_tokens_of_a_sample() -> None:
    moved = 3 * TARGET + numbers(B, 1, D, key=4)
    plain, normal = term_of(head="none", metric="mse"), term_of(head="none", metric="mse", target_norm="sample")
    expected = (TARGET - TARGET.mean(1, keepdim=True)) / TARGET.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(value(normal, STUDENT, moved), value(plain, STUDENT, expected), rtol=1e-5, atol=0)
    assert not torch.allclose(value(plain, STUDENT, moved), value(plain, STUDENT, expected), rtol=1e-2)
    assert value(normal, STUDENT, torch.ones_like(TARGET)).isfinite().all()


def test_clean_patches_normalized_by_the_data() -> None:
    keys = {"source": "clean", "metric": "mse", "head_width": 3}
    normal, x0 = term_of(**keys, target_norm="data"), view("student").x0
    scaled = (x0 - torch.tensor([0.3, -0.2]).view(2, 1, 1)) / torch.tensor([0.5, 2.0]).view(2, 1, 1)
    patches = scaled.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, 4, 4, 2, 2]
    expected = patches.permute(0, 2, 3, 1, 4, 5).reshape(B, N, 8)
    mapped = normal.head(STUDENT, None)
    torch.testing.assert_close(
        value(normal, STUDENT, TARGET), (mapped - expected).square().mean((1, 2)), rtol=1e-6, atol=0
    )
    plain = term_of(**keys)
    plain.load_state_dict(normal.state_dict())
    assert not torch.allclose(value(plain, STUDENT, TARGET), value(normal, STUDENT, TARGET), rtol=1e-2)


@pytest.mark.parametrize("visible", [None, VISIBLE])
def test_features_of_the_data_set(visible: Tensor | None) -> None:
    term = term_of(source="external", features="encoder", feature_width=E)
    given = numbers(B, E, *GRID, key=6)
    tokens = given.flatten(2).transpose(1, 2)
    views = {"student": view("student", visible)}
    views["student"].extras["encoder"] = given
    shown = Tokens(STUDENT) if visible is None else Tokens(Tokens(STUDENT).at(visible), visible)
    found = term(context(), views, {"student": Outputs(taps={0.3: shown})})
    mapped = Tokens(term.head(STUDENT, None)).at(visible)
    expected = 1 - torch.cosine_similarity(mapped, Tokens(tokens).at(visible), dim=-1).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    views["student"].extras["encoder"] = given.transpose(2, 3)
    assert not torch.allclose(term(context(), views, {"student": Outputs(taps={0.3: shown})}), expected, rtol=1e-3)
    views["student"].extras = {}
    with pytest.raises(SdditError, match="no features 'encoder'"):
        term(context(), views, {"student": Outputs(taps={0.3: shown})})


def test_features_of_another_grid_are_resized_bilinearly() -> None:
    coarse = numbers(B, E, 2, 2, key=7)
    found = targets.tokens_of({"encoder": coarse}, "encoder", GRID).transpose(1, 2).unflatten(2, GRID)
    weights = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(found, torch.einsum("ih,jw,behw->beij", weights, weights, coarse))
    assert not torch.allclose(found[..., ::2, ::2], coarse, rtol=1e-2)


def test_statistics_of_the_data_are_needed_where_they_are_used() -> None:
    with pytest.raises(ValueError, match="needs mean and std"):
        Align(AlignParams(source="clean", target_norm="data"), widths={0.3: D}, grid=GRID, image=IMAGE)
    with pytest.raises(ValidationError, match="for source 'clean'"):
        AlignParams(target_norm="data")
    for keys in ({"source": "external"}, {"feature_width": 4}):
        with pytest.raises(ValidationError, match="is needed with source 'external'"):
            AlignParams(**keys)
    with pytest.raises(ValidationError, match="head_width has no effect"):
        AlignParams(head="none", head_width=4)


@pytest.mark.parametrize("index", [None, VISIBLE])
def test_every_token_moves_in_one_cycle(index: Tensor | None) -> None:
    count = N if index is None else index.shape[1]
    tokens = Tokens(torch.arange(count, dtype=torch.float64).expand(B, count)[..., None], index)
    moved = targets.permute_tokens(tokens, targets.random_order(N)).patch[..., 0].long()
    for row in moved:
        place, seen = 0, []
        for _ in range(count):
            place = int(row[place])
            seen.append(place)
        assert sorted(seen) == list(range(count))
    again = targets.permute_tokens(tokens, targets.random_order(N)).patch[..., 0].long()
    assert torch.equal(moved, again), "fixed"


def test_permuted_targets_keep_their_norms_and_lose_their_places() -> None:
    for kind in ("tokens", "channels"):
        term = term_of(source="self", head="none", permute=kind)
        assert value(term, STUDENT, STUDENT).min() > 0.3
        assert not list(term.state_dict()), "the order is not stored"
    plain = term_of(source="self", head="none")
    assert value(plain, STUDENT, STUDENT).abs().max() < 1e-12


def test_every_monitor_is_logged() -> None:
    term = term_of()
    value(term, STUDENT, WIDE)
    read = term.diagnostics()
    assert {monitor.name for monitor in term.params.monitors()} == set(read)
    bare = term_of(head="none")
    found = value(bare, STUDENT, TARGET).mean()
    assert float(bare.diagnostics()["similarity"]) == pytest.approx(1 - float(found), rel=1e-6)


def test_several_teacher_views_are_averaged() -> None:
    term = term_of(head="none")
    views = {"student": view("student"), "a": view("teacher"), "b": view("teacher")}
    outputs = {name: Outputs(taps={0.7: Tokens(numbers(B, N, D, key=key))}) for name, key in (("a", 5), ("b", 6))}
    outputs["student"] = Outputs(taps={0.3: Tokens(STUDENT)})
    parts = [value(term, STUDENT, outputs[name].taps[0.7].patch) for name in "ab"]
    torch.testing.assert_close(term(context(), views, outputs), sum(parts) / 2, rtol=1e-12, atol=0)


class Widths(BackboneParams):
    """A backbone of two widths."""

    def grid(self, shapes: Shapes) -> tuple[int, int]:
        return GRID

    def width(self, tap: Any) -> int:
        return {0.3: D, 0.7: E}[tap]


@pytest.mark.parametrize(
    "keys",
    [{}, {"head_layers": 3, "head_width": 20}, {"head": "conv"}, {"source": "clean"}, {"source": "self"}],
)
def test_the_cost_is_that_of_the_head(keys: dict[str, Any]) -> None:
    term, shapes = term_of(**keys), Shapes(IMAGE, 3)
    cost = term.params.cost(Widths(), shapes, ViewSpec("student"), N)
    assert cost.parameters == sum(p.numel() for p in term.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        value(term, STUDENT, WIDE)
    rank = 2 * math.prod((min(256, B * N),) * 2) * D  # of the monitor's Gram matrix
    assert counter.get_total_flops() - rank == B * cost.flops
    assert term.params.cost(Widths(), shapes, ViewSpec("teacher", "teacher"), N).flops == 0
    assert term_of(source="self", head="none").params.cost(Widths(), shapes, ViewSpec("student"), N).flops == 0
