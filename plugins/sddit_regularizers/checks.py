"""Measure the losses of this plugin for `sddit-run verify`, against closed forms and sums written out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from sddit.diffusion.draws import KeyedDraws
from sddit.diffusion.preconditioning import raw_target
from sddit.interfaces import CheckContext, Context, Measurement, Outputs, Tap, Tokens, View
from sddit.losses import LossTerm
from sddit.testing import fixtures
from sddit.training.loss_checks import Scene
from sddit.training.simulated_ranks import Result, evaluate
from sddit_regularizers.contrastive import Contrastive
from sddit_regularizers.dispersive import Dispersive
from sddit_regularizers.diversity import Diversity
from sddit_regularizers.params import ContrastiveParams, DispersiveParams, DiversityParams, RepulsorParams
from sddit_regularizers.repulsor import Repulsor

VARIANTS = ("l2", "cosine", "hinge", "covariance")
MODES: tuple[Literal["any", "other_class"], ...] = ("any", "other_class")
TAP = 0.25
WIDTH = 6


def view_of(x0: Tensor, noise: Tensor, t: Tensor, labels: Tensor) -> View:
    """Return a student view under the noise schedule of the fixtures."""
    x = fixtures.schedule().perturb(x0, noise, t)
    return View(network="student", x=x, t=t, labels=labels, x0=x0, noise=noise)


def scene_of(patch: Tensor, labels: Tensor | None = None) -> Scene:
    """Return a scene of one view whose tokens at the tap are `patch` [B, n, D], float64."""
    count = len(patch)
    x0, noise = (fixtures.numbers(count, 1, 4, 4, key=key, dtype=torch.float64) for key in (1, 2))
    labels = torch.arange(count) % fixtures.CLASSES if labels is None else labels
    view = view_of(x0, noise, torch.full((count,), 0.5, dtype=torch.float64), labels)
    context = replace(fixtures.context(), draws=KeyedDraws(7, fixtures.STEP, torch.arange(count)))
    return Scene(context, {"student": view}, {"student": Outputs(taps={TAP: Tokens(patch)})})


def dispersive(**settings: Any) -> Dispersive:
    return Dispersive(DispersiveParams(tap=TAP, **settings))


def value_of(term: Dispersive, patch: Tensor) -> float:
    """Return the loss of tokens [B, n, D]."""
    with torch.no_grad():
        return float(scene_of(patch).value_of(term))


def dispersion(context: CheckContext) -> Iterator[Measurement]:
    """Measure the extremes of the loss: 0 for equal images, -ln B for images far from each other."""
    count = 8
    equal = fixtures.numbers(1, 4, WIDTH, dtype=torch.float64).expand(count, -1, -1)
    far = 100 * torch.eye(count, dtype=torch.float64)[:, None]  # [B, 1, B], orthogonal
    for variant in ("l2", "cosine"):
        term = dispersive(variant=variant, temperature=0.01)
        value = value_of(term, equal)
        yield Measurement(f"{variant}: equal images, from 0", abs(value), 1e-12)
        value = value_of(term, far)
        yield Measurement(f"{variant}: orthogonal distant images, from -ln B", abs(value + math.log(count)), 1e-12)
    value = value_of(dispersive(variant="hinge"), far)
    yield Measurement("hinge: orthogonal images, from 1 / B", abs(value - 1 / count), 1e-12)
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    independent = torch.cat([signs, -signs])[:, None]  # no channel is correlated with another one
    value = value_of(dispersive(variant="covariance"), independent)
    yield Measurement("covariance: uncorrelated channels, from 0", abs(value), 1e-12)
    dependent = torch.stack([signs[1], signs[1], -signs[1], -signs[1]])[:, None]
    value = value_of(dispersive(variant="covariance"), dependent)
    yield Measurement("covariance: equal channels, from 3 / 4", abs(value - 0.75), 1e-12)


def pairwise(context: CheckContext) -> Iterator[Measurement]:
    """Compare each variant with its formula, written out over pairs of images or channels."""
    patch = 0.5 * fixtures.numbers(5, 3, 4, dtype=torch.float64) + 3
    for variant in VARIANTS:
        value = value_of(dispersive(variant=variant), patch)
        yield Measurement(
            f"{variant}: difference from the sum over pairs", abs(value - by_pairs(variant, patch)), 1e-12
        )


def by_pairs(variant: str, patch: Tensor) -> float:
    """Return the loss of tokens [B, n, D] with the default settings, by loops."""
    params = DispersiveParams()
    z = [row.flatten() for row in patch]
    if variant == "covariance":
        units = torch.stack([row / row.norm() for row in z])
        covariances = torch.cov(units.T, correction=0)
        return sum(float(c) ** 2 for m, row in enumerate(covariances) for n, c in enumerate(row) if m != n)
    terms = []
    for one in z:
        for other in z:
            distance = float(((one - other) ** 2).mean())
            cosine = float(one @ other / (one.norm() * other.norm()))
            terms.append(
                {
                    "l2": math.exp(-distance / params.temperature),
                    "cosine": math.exp((cosine - 1) / params.temperature),
                    "hinge": max(0.0, params.margin - 1 + cosine) ** 2,
                }[variant]
            )
    mean = sum(terms) / len(terms)
    return mean if variant == "hinge" else math.log(mean)


def dispersive_ranks(context: CheckContext) -> Iterator[Measurement]:
    """Compare value and gradient on two processes with those on one."""
    for variant in VARIANTS:
        term, scene = dispersive(variant=variant), scene_of(fixtures.numbers(8, 3, WIDTH, dtype=torch.float64))
        one, two = on_one_and_two(term, scene)
        difference = max(float((two.leaves[name] - one.leaves[name]).abs().max()) for name in one.leaves)
        yield Measurement(f"{variant}: value on two processes", abs(float(two.value - one.value)), 1e-12)
        yield Measurement(f"{variant}: gradient on two processes", difference, 1e-12)


def on_one_and_two(term: LossTerm, scene: Scene) -> tuple[Result, Result]:
    """Return what a loss gives on one process, and on two with half of the samples each."""
    halves = torch.arange(scene.size).chunk(2)
    return evaluate(term, [scene]), evaluate(term, [scene.select(rows) for rows in halves])


def repulsor(**settings: Any) -> Repulsor:
    """Build a repulsor with a small queue, without zero weights, float64."""
    with fixtures.default_dtype(torch.float64):
        term = Repulsor(RepulsorParams(tap=TAP, **{"queue": 10, "dimension": 4, **settings}), widths={TAP: WIDTH})
    fixtures.randomised(term, scale=0.5)
    return term


def queue(context: CheckContext) -> Iterator[Measurement]:
    """Measure that the queue holds the newest projections in order, and changes only after a step."""
    term = repulsor()
    first = term.queue.clone()
    steps = [scene_of(fixtures.numbers(4, 3, WIDTH, key=key, dtype=torch.float64)) for key in range(4)]
    seen = torch.cat([project(term, scene) for scene in steps])
    steps[0].value_of(term)
    term.discard()
    term.after_step(steps[0].ctx)
    yield Measurement("rows that a discarded step changed", float((term.queue != first).any(dim=1).sum()), 0)
    for number, scene in enumerate(steps, start=1):
        scene.value_of(term)
        if number == 1:
            yield Measurement("rows that forward changed", float((term.queue != first).any(dim=1).sum()), 0)
        term.after_step(scene.ctx)
        expected = torch.cat([first, seen[: 4 * number]])[-10:]
        error = float((term.queue - expected).abs().max())
        yield Measurement(f"step {number}: queue, from the newest projections", error, 1e-14)
    one, two = on_one_and_two(term, steps[0])
    error = max(float((own["queue"] - one.buffers[0]["queue"]).abs().max()) for own in two.buffers)
    yield Measurement("queue of each of two processes, from that of one", error, 1e-14)


def project(term: Repulsor, scene: Scene) -> Tensor:
    """Return the projections of a scene, with the head written out."""
    x = scene.outputs["student"].taps[TAP].patch.detach().mean(dim=1)
    variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    hidden = x @ term.get_parameter("head.0.weight").T + term.get_parameter("head.0.bias")
    hidden = hidden * torch.sigmoid(hidden)
    return (hidden @ term.get_parameter("head.2.weight").T + term.get_parameter("head.2.bias")).detach()


def repulsion(context: CheckContext) -> Iterator[Measurement]:
    """Measure the loss for a queue on a line: on it, ln((1 + exp(-2 / tau)) / 2); orthogonal to it, -1 / tau."""
    term, tau = repulsor(temperature=0.25), 0.25
    axes, origin = torch.eye(4, dtype=torch.float64), fixtures.numbers(4, dtype=torch.float64)
    term.queue.copy_(origin + torch.cat([axes[:1].expand(5, -1), -axes[:1].expand(5, -1)]))
    ends = math.log((1 + math.exp(-2 / tau)) / 2)
    for name, row, expected in (
        ("on", axes[0], ends),
        ("on the other end of", -axes[0], ends),
        ("orthogonal to", axes[1], -4.0),
    ):
        found = term.repulsion(fixtures.context(), (origin + 3 * row)[None])
        yield Measurement(f"projection {name} the line, from {expected:.3f}", abs(float(found) - expected), 1e-12)
    scene, term = scene_of(fixtures.numbers(3, 3, WIDTH, dtype=torch.float64)), repulsor(temperature=tau)
    center = sum(term.queue) / len(term.queue)
    written_out = torch.zeros(scene.size, dtype=torch.float64)
    for i, own in enumerate(project(term, scene)):
        cosines = [float(torch.cosine_similarity(own - center, past - center, dim=0)) for past in term.queue]
        written_out[i] = math.log(sum(math.exp((cosine - 1) / tau) for cosine in cosines) / len(cosines))
    error = float((scene.value_of(term).detach() - written_out).abs().max())
    yield Measurement("difference from the sum over the queue", error, 1e-12)


WEIGHT = 0.3  # lambda, large enough that the optimum differs much from that of denoising
POINTS = 8_000
FIVE_ERRORS = 5.0


def two_points(context: CheckContext) -> Iterator[Measurement]:
    """Measure that the gradient of both terms is 0 on average at the closed-form optimum, for images 0.5 and -1.

    At R = (E[R* | x] - lambda E[R*_ij | x]) / (1 - lambda) it is 0 over all images, and over those with x > 0. The
    latter is not so at the optimum of denoising alone. With `any`, R*_ij does not depend on x.
    """
    x0 = torch.where(torch.arange(POINTS) % 2 == 0, 0.5, -1.0).double()[:, None, None, None]
    x0 = x0 + 1e-9 * torch.arange(POINTS)[:, None, None, None]  # so that no image is a copy, which has no partner
    noise = fixtures.numbers(POINTS, 1, 1, 1, key=1, dtype=torch.float64)
    view = view_of(x0, noise, torch.full((POINTS,), 0.8, dtype=torch.float64), torch.arange(POINTS) % 2)
    for mode in MODES:
        posterior, of_partner = optimal_outputs(view, mode)
        found = gradient(view, (posterior - WEIGHT * of_partner) / (1 - WEIGHT), mode)
        for name, select in (("all images", view.x == view.x), ("images with x > 0", view.x > 0)):
            what = f"{mode}: gradient at the optimum, {name}, in standard errors"
            yield Measurement(what, standard_errors(found, select), FIVE_ERRORS)
        other = standard_errors(gradient(view, posterior, mode), view.x > 0)
        yield Measurement(f"{mode}: the same at the optimum of denoising alone", other, 2 * FIVE_ERRORS, ">=")
    raw = fixtures.numbers(*view.x.shape, key=3, dtype=torch.float64)
    denoising = (raw - raw_target(fixtures.schedule(), view.x0, view.noise, view.t, raw.dtype)).square().mean()
    value = OwnPartner(ContrastiveParams())(fixtures.context(), {"student": view}, {"student": Outputs(raw=raw)})
    yield Measurement("each image its own partner: sum with the denoising loss", abs(float(value + denoising)), 1e-12)


class OwnPartner(Contrastive):
    """The loss with the image itself as its partner."""

    def partners(self, ctx: Context, view: View) -> tuple[Tensor, Tensor]:
        return torch.arange(len(view.x)), torch.ones(len(view.x), dtype=torch.bool)


def optimal_outputs(view: View, mode: str) -> tuple[Tensor, Tensor]:
    """Return E[R* | x] and E[R*_ij | x] for equally likely images 0.5 and -1, by Bayes' rule."""
    schedule = fixtures.schedule()
    alpha, sigma = (each[:, None, None, None] for each in (schedule.alpha(view.t), schedule.sigma(view.t)))
    points = [torch.full_like(view.x, value) for value in (0.5, -1.0)]
    noises = [(view.x - alpha * x0) / sigma for x0 in points]
    probabilities = torch.stack([-noise.square() / 2 for noise in noises]).softmax(dim=0)
    targets = [raw_target(schedule, x0, eps, view.t, eps.dtype) for x0, eps in zip(points, noises, strict=True)]
    quiet = [raw_target(schedule, x0, torch.zeros_like(x0), view.t, x0.dtype) for x0 in points]  # mean over noise
    posterior = (probabilities * torch.stack(targets)).sum(dim=0)
    if mode == "any":
        return posterior, torch.stack(quiet).mean(dim=0)
    return posterior, (probabilities * torch.stack(quiet[::-1])).sum(dim=0)


def gradient(view: View, raw: Tensor, mode: Literal["any", "other_class"]) -> Tensor:
    """Return the gradient of denoising plus lambda times the contrastive term, times the number of images."""
    raw = raw.clone().requires_grad_()
    term, ctx = Contrastive(ContrastiveParams(partner=mode)), fixtures.context()
    denoising = (raw - raw_target(ctx.schedule, view.x0, view.noise, view.t, raw.dtype)).square().mean()
    contrast = []
    for rows in torch.split(torch.arange(len(raw)), 200):  # one batch
        part = View(
            network="student",
            x=view.x[rows],
            t=view.t[rows],
            labels=view.labels[rows],
            x0=view.x0[rows],
            noise=view.noise[rows],
        )
        own = replace(ctx, draws=KeyedDraws(7, fixtures.STEP, rows))
        contrast.append(term(own, {"student": part}, {"student": Outputs(raw=raw[rows])}))
    (found,) = torch.autograd.grad(denoising + WEIGHT * torch.stack(contrast).mean(), raw)
    return found * len(raw)


def standard_errors(values: Tensor, select: Tensor) -> float:
    """Return the mean of the selected values, in standard errors."""
    chosen = values[select]
    return abs(float(chosen.mean() / chosen.std())) * math.sqrt(len(chosen))


def partners(context: CheckContext) -> Iterator[Measurement]:
    """Measure that no partner is the same image or, with `other_class`, of the same class, and that all are equally
    likely.
    """
    count, draws = 12, 2000
    images = fixtures.numbers(count, 1, 2, 2, dtype=torch.float64)
    images[1] = images[0]  # a copy
    labels = torch.tensor([0, 1, 2, 3] * 3)  # 3: dropped
    assert fixtures.CLASSES == 3
    view = view_of(images, torch.zeros_like(images), torch.ones(count, dtype=torch.float64), labels)
    for mode in MODES:
        term = Contrastive(ContrastiveParams(partner=mode))
        drawn, paired = [], []
        for step in range(draws):
            ctx = replace(fixtures.context(step), draws=KeyedDraws(7, step, torch.arange(count)))
            partner, has_partner = term.partners(ctx, view)
            drawn.append(partner)
            paired.append(has_partner)
        chosen, valid = torch.stack(drawn), torch.stack(paired)  # [draws, B]
        same = (images[chosen] == images).flatten(2).all(dim=2) & valid
        yield Measurement(f"{mode}: partners that are the same image", float(same.sum()), 0)
        frequency = torch.stack([(chosen == other).float().mean(dim=0) for other in range(count)])  # [B partners, B]
        candidates = frequency[:, 4] > 0  # of one image with a label
        expected = count - 1 if mode == "any" else 6
        yield Measurement(
            f"{mode}: candidates of an image, from {expected}", abs(float(candidates.sum()) - expected), 0
        )
        error = (frequency[candidates, 4] - 1 / expected).abs().max()
        bound = math.sqrt((1 / expected) * (1 - 1 / expected) / draws)
        yield Measurement(f"{mode}: frequency of a partner, in standard errors", float(error) / bound, FIVE_ERRORS)
        if mode == "other_class":
            wrong = ((labels[chosen] == labels) | (labels[chosen] == 3) | (labels == 3)) & valid
            yield Measurement("other_class: partners of the same or an unknown class", float(wrong.sum()), 0)


def diversity(context: CheckContext) -> Iterator[Measurement]:
    """Measure the loss of equal blocks, 2/3, and of orthogonal ones, minus a third of the variance; and the gate."""
    taps: tuple[Tap, ...] = (1, 2, 3)
    term = Diversity(DiversityParams(taps=taps))
    token = torch.tensor([1.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    equal = token.expand(3, 2, 5, 4)
    yield Measurement("equal blocks, from 2/3", float((term.similarity(equal) - 2 / 3).abs().max()), 1e-12)
    axes = torch.eye(4, dtype=torch.float64)[:3, None, None].expand(3, 2, 5, 4)
    # LayerNorm divides by the root of 3 / 16 + eps; the variance over blocks of 0, 0, 1 is 2 / 9, in three channels.
    variance = (3 / 4) * (2 / 9) / (3 / 16 + 1e-5)
    error = float((term.similarity(axes) + variance / 3).abs().max())
    yield Measurement("orthogonal blocks, from minus a third of the variance", error, 1e-12)
    for value, expected in ((0.6, 1.0), (0.5, 0.8), (0.3, 0.4), (0.1, 0.0), (0.05, 0.0)):
        found = float(term.gate_of(torch.tensor(value, dtype=torch.float64)))
        yield Measurement(f"gate at {value:g}, from {expected:g}", abs(found - expected), 1e-12)
