"""Test the losses in float64 against independent computations."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import Context, NoiseSchedule, Outputs, Tokens, View, ViewSpec
from sddit.testing import fixtures
from sddit_dit.params import DiTParams
from sddit_edm.flow import Flow
from sddit_edm.params import EDMParams, FlowParams
from sddit_edm.schedule import EDM
from sddit_regularizers.contrastive import Contrastive
from sddit_regularizers.dispersive import Dispersive
from sddit_regularizers.distances import class_distances
from sddit_regularizers.diversity import Diversity
from sddit_regularizers.params import ContrastiveParams, DispersiveParams, DiversityParams, RepulsorParams
from sddit_regularizers.repulsor import Repulsor

B, N, D = 6, 4, 8
TAP = 0.25
BACKBONE = DiTParams.model_validate({"depth": 4, "width": D, "heads": 2, "patch": 4})
SCHEDULES: dict[str, NoiseSchedule] = {"edm": EDM(EDMParams()), "flow": Flow(FlowParams())}


def numbers(*shape: int, key: int = 0) -> Tensor:
    return fixtures.numbers(*shape, key=key, dtype=torch.float64)


def context(schedule: NoiseSchedule | None = None, step: int = 0) -> Context:
    ctx = dataclasses.replace(fixtures.context(step), draws=KeyedDraws(3, step, torch.arange(B)))
    return ctx if schedule is None else dataclasses.replace(ctx, schedule=schedule)


def view(schedule: NoiseSchedule | None = None, labels: Tensor | None = None, visible: Tensor | None = None) -> View:
    schedule = schedule or fixtures.schedule()
    x0, noise, t = numbers(B, 1, 8, 8, key=1), numbers(B, 1, 8, 8, key=2), torch.linspace(0.1, 0.9, B).double()
    labels = torch.arange(B) % 3 if labels is None else labels
    x = schedule.perturb(x0, noise, t)
    return View(network="student", x=x, t=t, labels=labels, x0=x0, noise=noise, visible=visible)


def dispersed(patch: Tensor, **settings: Any) -> Tensor:
    term = Dispersive(DispersiveParams.model_validate({"tap": TAP, **settings}))
    value: Tensor = term(context(), {"student": view()}, {"student": Outputs(taps={TAP: Tokens(patch)})})
    return value


# Dispersive


@pytest.mark.parametrize("variant", ["l2", "cosine", "hinge", "covariance"])
def test_gradients_of_the_dispersive_loss_are_those_of_finite_differences(variant: str) -> None:
    patch = 0.5 * numbers(B, N, D) + 1
    assert torch.autograd.gradcheck(lambda x: dispersed(x, variant=variant), patch.clone().requires_grad_())


@pytest.mark.parametrize(("key", "changed"), [("temperature", ["l2", "cosine"]), ("margin", ["hinge"])])
def test_temperature_and_margin_belong_to_their_variants(key: str, changed: list[str]) -> None:
    patch = 0.5 * numbers(B, N, D)
    for variant in ("l2", "cosine", "hinge", "covariance"):
        differs = not torch.equal(dispersed(patch, variant=variant), dispersed(patch, variant=variant, **{key: 0.7}))
        assert differs == (variant in changed)


def test_a_step_against_the_gradient_separates_the_images() -> None:
    patch = (0.1 * numbers(B, N, D)).requires_grad_()
    value = dispersed(patch)
    (gradient,) = torch.autograd.grad(value, patch)
    moved = patch.detach() - gradient
    assert dispersed(moved) < value
    assert torch.pdist(moved.flatten(1)).mean() > torch.pdist(patch.detach().flatten(1)).mean()


def test_a_large_common_part_does_not_cost_digits_in_float32() -> None:
    patch = 0.5 * numbers(B, N, D)
    exact = dispersed(patch)
    shifted = (patch + 1000).float()
    found = dispersed(shifted)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=0)
    rows = shifted.flatten(1)
    products = (rows.square().sum(1)[:, None] + rows.square().sum(1) - 2 * rows @ rows.T).clamp(min=0) / rows.shape[1]
    naive = (-products / 0.5).exp().mean().log()
    assert abs(float(naive - exact)) > 10 * abs(float(found - exact))


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_the_loss_is_never_below_its_minimum_in_float32(scale: float) -> None:
    """Long features far from each other: rounding must not give an image a distance from itself."""
    patch = scale * numbers(B, 64, 64, key=5).float()
    assert float(dispersed(patch, temperature=0.01)) == pytest.approx(-math.log(B), abs=1e-6)
    rows = patch.flatten(1)
    rows = (rows - rows.mean(0)) / 64
    own = rows.square().sum(1) * 2 - 2 * (rows @ rows.T).diagonal()
    assert own.abs().max() > 0 or scale == 1.0


def test_distances_within_and_between_classes() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 3])  # 3: dropped
    points = torch.tensor([0.0, 1, 10, 13, 50, 0])
    distances = (points[:, None] - points).square()
    within, between = class_distances(distances, labels, labels, 3, lambda x: x)
    assert float(within) == pytest.approx((1 + 9) / 2)
    pairs = [(i, j) for i in range(5) for j in range(5) if labels[i] != labels[j]]
    assert float(between) == pytest.approx(sum(float(distances[i, j]) for i, j in pairs) / len(pairs))
    alone = torch.tensor([0, 1, 2, 3, 3, 3])
    assert class_distances(distances, alone, alone, 3, lambda x: x)[0] == (1 + 100 + 81) / 3


# Repulsor


def repulsor(**settings: Any) -> Repulsor:
    with fixtures.default_dtype(torch.float64):
        term = Repulsor(
            RepulsorParams.model_validate({"tap": TAP, "queue": 8, "dimension": 4} | settings), widths={TAP: D}
        )
    fixtures.randomised(term, scale=0.5)
    return term


def repelled(term: Repulsor, patch: Tensor) -> Tensor:
    value: Tensor = term(context(), {"student": view()}, {"student": Outputs(taps={TAP: Tokens(patch)})})
    return value


def test_the_queue_begins_with_the_same_directions_everywhere() -> None:
    torch.manual_seed(1)
    first = repulsor().queue
    torch.manual_seed(2)
    assert torch.equal(first, repulsor().queue)
    assert torch.unique(first, dim=0).shape == first.shape


def test_a_batch_longer_than_the_queue_leaves_its_end() -> None:
    whole, short = repulsor(queue=8), repulsor(queue=4)
    for term in (whole, short):
        repelled(term, numbers(B, N, D))
        term.after_step(context())
    assert torch.equal(whole.queue[-4:], short.queue)


def test_micro_batches_fill_the_queue_in_the_order_of_the_batch() -> None:
    together, apart = repulsor(), repulsor()
    patch = numbers(B, N, D)
    value = repelled(together, patch)
    parts = [repelled(apart, rows) for rows in patch.split(2)]
    torch.testing.assert_close(torch.cat(parts), value, rtol=1e-12, atol=0)
    for term in (together, apart):
        term.after_step(context())
    torch.testing.assert_close(together.queue, apart.queue, rtol=1e-12, atol=0)


def test_no_gradient_reaches_the_queue() -> None:
    term = repulsor()
    repelled(term, numbers(B, N, D).requires_grad_()).sum().backward()
    assert term.queue.grad is None and not term.queue.requires_grad
    assert all(not part.requires_grad for part in term.staged())


@pytest.mark.parametrize("projection", ["trained", "fixed"])
def test_the_projection_ignores_length_and_offset_of_the_features(projection: str) -> None:
    term, patch = repulsor(projection=projection), numbers(B, N, D)
    torch.testing.assert_close(repelled(term, 100 * patch + 7), repelled(term, patch), rtol=1e-4, atol=0)
    assert (repelled(term, patch.flip(2)) - repelled(term, patch)).abs().max() > 1e-2


# Contrastive


def contrasted(raw: Tensor, seen: View, schedule: NoiseSchedule, **settings: Any) -> tuple[Tensor, Contrastive]:
    term = Contrastive(ContrastiveParams.model_validate(settings))
    value: Tensor = term(context(schedule), {"student": seen}, {"student": Outputs(raw=raw)})
    return value, term


@pytest.mark.parametrize("space", ["native", "velocity"])
@pytest.mark.parametrize("weighting", ["uniform", "linear"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_second_term_is_the_distance_to_the_target_of_the_partner(name: str, weighting: str, space: str) -> None:
    """Images and noise of the partner, at the level of the image: computed from x0, noise and D alone."""
    schedule = SCHEDULES[name]
    seen, raw = view(schedule), numbers(B, 1, 8, 8, key=3)
    found, term = contrasted(raw, seen, schedule, space=space, weighting=weighting)
    partner, valid = term.partners(context(schedule), seen)
    assert valid.all() and not torch.equal(partner, torch.arange(B))
    errors = []
    for i, j in enumerate(partner.tolist()):
        t = seen.t[i : i + 1]
        alpha, sigma, c = float(schedule.alpha(t)), float(schedule.sigma(t)), schedule.scalings(t)
        x0, noise = seen.x0[j], seen.noise[j]
        if space == "native":
            target = (x0 - float(c.c_skip) * (alpha * x0 + sigma * noise)) / float(c.c_out)
            error = (raw[i] - target).square().mean()
        else:
            denoised = float(c.c_skip) * seen.x[i] + float(c.c_out) * raw[i]
            velocity = (seen.x[i] - alpha * denoised) / sigma - denoised
            # The partner's image and noise stand for those of this image: eps_j - x0_j in terms of R.
            target = (x0 - float(c.c_skip) * (alpha * x0 + sigma * noise)) / float(c.c_out)
            there = float(c.c_skip) * seen.x[i] + float(c.c_out) * target
            error = (velocity - ((seen.x[i] - alpha * there) / sigma - there)).square().mean()
        errors.append(float(error) * (sigma / (alpha + sigma) if weighting == "linear" else 1.0))
    assert float(found) == pytest.approx(-sum(errors) / B, rel=1e-11)
    other = contrasted(raw, seen, schedule, space=space, weighting="uniform" if weighting == "linear" else "linear")[0]
    assert float(other) != pytest.approx(float(found), rel=1e-3)


def test_in_the_flow_schedule_the_velocity_is_the_published_one() -> None:
    schedule, raw = SCHEDULES["flow"], numbers(B, 1, 8, 8, key=3)
    seen = view(schedule)
    native, term = contrasted(raw, seen, schedule)
    velocity = contrasted(raw, seen, schedule, space="velocity")[0]
    torch.testing.assert_close(velocity, native, rtol=1e-12, atol=0)
    partner = term.partners(context(schedule), seen)[0]
    published = (raw - (seen.noise - seen.x0)[partner]).square().mean()
    torch.testing.assert_close(native, -published, rtol=1e-12, atol=0)
    edm = view(SCHEDULES["edm"])
    both = [float(contrasted(raw, edm, SCHEDULES["edm"], space=space)[0]) for space in ("native", "velocity")]
    assert both[0] != pytest.approx(both[1], rel=1e-2)


def test_an_image_without_a_partner_counts_zero() -> None:
    schedule, raw = SCHEDULES["edm"], numbers(B, 1, 8, 8, key=3)
    alone = torch.tensor([0, 0, 0, 3, 3, 3])
    value, term = contrasted(raw, view(schedule, alone), schedule, partner="other_class")
    assert float(value) == 0
    assert float(term.diagnostics()["paired"]) == 0
    some = torch.tensor([0, 0, 1, 3, 3, 3])
    value, term = contrasted(raw, view(schedule, some), schedule, partner="other_class")
    logged = term.diagnostics()
    assert {monitor.name for monitor in term.params.monitors()} == set(logged)
    assert float(logged["paired"]) == pytest.approx(0.5)
    assert float(logged["second_term"]) == pytest.approx(-float(value))
    assert float(value) < 0


def test_partners_depend_on_step_and_seed_alone() -> None:
    """Not on the process: half of the batch draws what it draws within the batch."""
    term, seen = Contrastive(ContrastiveParams()), view()
    whole = term.partners(context(), seen)[0]
    half = dataclasses.replace(seen, x0=seen.x0[3:], labels=seen.labels[3:])
    ctx = context()
    there = dataclasses.replace(ctx, draws=ctx.draws.select(torch.arange(3, B)), gather=lambda x: seen.x0.flatten(1))
    assert torch.equal(term.partners(there, half)[0], whole[3:])
    assert not torch.equal(term.partners(context(step=1), seen)[0], whole)


# Diversity


def diversified(h: Tensor, term: Diversity, visible: Tensor | None = None) -> Tensor:
    """Return the loss of tokens [L, B, n, D]; the last tap is of all tokens."""
    taps = {tap: Tokens(tokens, visible) for tap, tokens in zip(term.params.taps, h, strict=True)}
    value: Tensor = term(context(), {"student": view(visible=visible)}, {"student": Outputs(taps=taps)})
    return value


def diversity(**settings: Any) -> Diversity:
    with fixtures.default_dtype(torch.float64):
        return Diversity(DiversityParams.model_validate({"taps": (1, 2, 3), **settings}))


def test_the_diversity_loss_is_its_sum_over_pairs_of_blocks() -> None:
    h = numbers(3, B, N, D) + 0.5
    expected = []
    for i in range(B):
        means = [h[k, i].mean(0) for k in range(3)]
        pairs = [(0, 1), (0, 2), (1, 2)]
        a = sum(abs(float(torch.cosine_similarity(means[k], means[m], dim=0))) for k, m in pairs) / 3
        b = sum(float(torch.cosine_similarity(h[k, i], h[m, i], dim=1).mean()) for k, m in pairs) / 3
        variances = [h[k, i].var(1, correction=0, keepdim=True) + 1e-5 for k in range(3)]
        normal = [(h[k, i] - h[k, i].mean(1, True)) / variances[k].sqrt() for k in range(3)]
        channels = [[float(tokens[:, d].mean()) for tokens in normal] for d in range(D)]
        c = sum(float(torch.tensor(channel, dtype=torch.float64).var(correction=0)) for channel in channels) / D
        expected.append((a + b - c) / 3)
    found = diversified(h, diversity())
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)
    long, longer = (diversified(scale * h, diversity()) for scale in (1e3, 1e6))  # where LayerNorm's eps is negligible
    torch.testing.assert_close(longer, long, rtol=1e-8, atol=0)
    assert float((diversified(h + 0.1, diversity()) - found).abs().max()) > 1e-3


def test_the_gate_follows_the_loss_of_the_last_step() -> None:
    term = diversity(gate_low=0.1, gate_high=0.7)
    h = numbers(1, B, N, D).expand(3, -1, -1, -1)  # L = 2/3
    first = diversified(h, term)
    torch.testing.assert_close(first, torch.full((B,), 2 / 3, dtype=torch.float64))
    assert float(term.gate) == 1
    term.after_step(context())
    assert float(term.gate) == pytest.approx((2 / 3 - 0.1) / 0.7)
    torch.testing.assert_close(diversified(h, term), first * term.gate)
    term.discard()
    gate = float(term.gate)
    term.after_step(context())
    assert float(term.gate) == gate


def test_blocks_of_an_encoder_and_a_decoder_are_compared_at_visible_tokens() -> None:
    visible = torch.tensor([[0, 2]] * B)
    h = numbers(3, B, N, D)
    term = diversity()
    seen = h.gather(2, visible[None, :, :, None].expand(3, -1, -1, D))
    taps = {1: Tokens(seen[0], visible), 2: Tokens(seen[1], visible), 3: Tokens(h[2])}
    taps[1].index = taps[2].index = visible
    found = term(context(), {"student": view(visible=visible)}, {"student": Outputs(taps=dict(taps))})
    torch.testing.assert_close(found, diversified(seen, diversity(), visible))
    assert not torch.allclose(found, diversified(h, diversity()))


# Cost


@pytest.mark.parametrize("batch", [4, 32])
def test_the_stated_flops_are_those_of_an_operator_count(batch: int) -> None:
    shapes, spec = fixtures.shapes(image=(1, 8, 8)), ViewSpec("student")
    patch = fixtures.numbers(batch, N, D)
    one = torch.zeros(batch, 1, 1, 1)
    seen = View(network="student", x=one, t=one.flatten(), labels=torch.zeros(batch).long(), x0=one, noise=one)
    cases = (
        (Dispersive(DispersiveParams(tap=TAP)), (TAP,)),
        (Repulsor(RepulsorParams(tap=TAP, queue=50, dimension=6), widths={TAP: D}), (TAP,)),
        (Repulsor(RepulsorParams(tap=TAP, queue=50, dimension=6, projection="fixed"), widths={TAP: D}), (TAP,)),
        (Diversity(DiversityParams(taps=(1, 2, 3))), (1, 2, 3)),
    )
    for term, taps in cases:
        outputs = {"student": Outputs(taps={tap: Tokens(patch) for tap in taps})}
        with FlopCounterMode(display=False) as counter:
            term(context(), {"student": seen}, outputs)
        params = term.params
        cost = params.cost(BACKBONE, shapes, spec, N) + params.pair_cost(BACKBONE, shapes, spec, N).times(batch)
        assert cost.flops > 0
        assert batch * cost.flops == counter.get_total_flops()
        assert cost.parameters == sum(p.numel() for p in term.parameters() if p.requires_grad)
        assert cost.frozen == sum(p.numel() for p in term.parameters() if not p.requires_grad)
        teacher = ViewSpec("teacher", "teacher")
        assert (
            params.cost(BACKBONE, shapes, teacher, N).flops == params.pair_cost(BACKBONE, shapes, teacher, N).flops == 0
        )


@pytest.mark.parametrize("term", ["dispersive", "repulsor", "diversity"])
def test_every_monitor_is_logged(term: str) -> None:
    terms = {"dispersive": Dispersive(DispersiveParams(tap=TAP)), "repulsor": repulsor(), "diversity": diversity()}
    loss = terms[term]
    taps = {tap: Tokens(numbers(B, N, D, key=k)) for k, tap in enumerate(loss.params.needs().student.taps)}
    loss(context(), {"student": view()}, {"student": Outputs(taps=taps)})
    logged = loss.diagnostics()
    assert {monitor.name for monitor in loss.params.monitors()} <= set(logged)
    assert all(math.isfinite(float(value)) for value in logged.values())
