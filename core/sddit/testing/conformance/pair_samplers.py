"""Check what holds for every pair sampler."""

from __future__ import annotations

import math
from typing import Any

import torch

from sddit.diffusion.masking import keep_count
from sddit.interfaces import View, ViewSpec
from sddit.testing import fixtures
from sddit.testing.case import Case
from sddit.value_schedules import value_at

TENSORS = ("x", "t", "labels", "x0", "noise", "visible", "groups", "dense_path")
TOKENS = math.prod(fixtures.GRID)


def examine(case: Case) -> None:
    """Check on one batch that the views are those that the params state, and a function of the keyed draws."""
    with case.trying("its params were asked for their views", fix="views() returns ViewSpec objects"):
        specs = case.params.views()
        networks = [spec.network for spec in specs]
        case.expect("student" in networks, "it makes no student view", got=networks)
        case.expect(networks == sorted(networks), "student views come before teacher views", got=networks)
        with case.trying("it made views"):
            sampler = case.build(grid=fixtures.GRID)
            views = sampled_views(case, sampler)
            names = list(views) if isinstance(views, dict) else type(views).__name__
            if case.equal(names, [s.name for s in specs], "it makes other views than its params state"):
                for spec in specs:
                    examine_view(case, spec, views[spec.name])
                examine_draws(case, sampler, views)


def sampled_views(case: Case, sampler: Any, step: int = fixtures.STEP, rows: slice = slice(None)) -> dict[str, View]:
    """Return the views of a batch, or of some of its rows, at a step."""
    batch = fixtures.batch(torch.float64, rows)
    context = fixtures.context(step, rows)
    given = {"x0": batch.x0, "labels": batch.labels}
    with case.no_global_randomness(), case.unchanged(lambda: given, "it changed the batch", "work on a copy"):
        views: dict[str, View] = sampler(batch, context.draws, context.schedule, context)
    return views


def examine_view(case: Case, spec: ViewSpec, view: View) -> None:
    """Check the shapes of one view, its noise and its mask."""
    shown = f"view {spec.name!r}"
    images = (fixtures.BATCH, *fixtures.IMAGE)
    case.equal(view.network, spec.network, f"{shown} is for the wrong network")
    shaped = [case.shaped(getattr(view, key), images, f"{key} of {shown}") for key in ("x", "x0", "noise")]
    per_token = isinstance(view.t, torch.Tensor) and view.t.dim() == 2
    levels = (fixtures.BATCH, TOKENS) if per_token else (fixtures.BATCH,)
    shaped.append(case.shaped(view.t, levels, f"t of {shown}"))
    if case.of_shape(view.labels, (fixtures.BATCH,), f"labels of {shown}"):
        case.equal(view.labels.dtype, torch.int64, f"labels of {shown} have a wrong dtype")
        known = bool(((view.labels >= 0) & (view.labels <= fixtures.CLASSES)).all())
        case.expect(known, f"labels of {shown} are not classes", expect=f"0 to {fixtures.CLASSES}, the null label")
    if all(shaped) and not per_token:
        expected = fixtures.schedule().perturb(view.x0, view.noise, view.t)
        close = torch.allclose(view.x, expected.to(view.x), rtol=1e-4, atol=1e-5)
        what = f"x of {shown} is not alpha(t) x0 + sigma(t) noise"
        case.expect(close, what, fix="schedule.perturb(x0, noise, t)")
    examine_mask(case, spec, view)
    examine_path(case, spec, view)


def examine_mask(case: Case, spec: ViewSpec, view: View) -> None:
    """Check that as many tokens are visible as the stated ratio leaves, each once, in rising order."""
    ratio = value_at(spec.mask_ratio, fixtures.STEP, fixtures.STEPS)
    highest, lowest = keep_count(TOKENS, ratio), keep_count(TOKENS, ratio + spec.mask_spread)
    if view.visible is None:
        expect = f"{highest} of {TOKENS} visible tokens"
        case.expect(highest == TOKENS, f"view {spec.name!r} hides nothing", expect=expect)
        return
    kept = min(max(view.visible.shape[-1], lowest), highest)
    what = f"visible of view {spec.name!r}"
    if case.shaped(view.visible, (fixtures.BATCH, kept), what, "sddit.diffusion.masking draws masks"):
        inside = bool(((view.visible >= 0) & (view.visible < TOKENS)).all())
        rising = bool((view.visible.diff(dim=1) > 0).all())
        expect = f"0 to {TOKENS - 1}, each once"
        case.expect(inside and rising, f"{what} are not rising token numbers", expect=expect)


def examine_path(case: Case, spec: ViewSpec, view: View) -> None:
    """Check that samples skip the sparse span only as far as the params state."""
    if view.dense_path is None:
        return
    what = f"dense_path of view {spec.name!r}"
    case.expect(spec.drops_path, f"{what} is set, though its ViewSpec states no path_drop")
    if case.of_shape(view.dense_path, (fixtures.BATCH,), what):
        case.equal(view.dense_path.dtype, torch.bool, f"{what} has a wrong dtype")


def examine_draws(case: Case, sampler: Any, views: dict[str, View]) -> None:
    """Check that the same draws give the same views in any part of the batch, and another step other noise."""
    again = sampled_views(case, sampler)
    part = sampled_views(case, sampler, rows=slice(2, 4))
    later = sampled_views(case, sampler, step=fixtures.STEP + 1)
    fix = "draw from `draws`, with one purpose for each use"
    for name, view in views.items():
        for key in TENSORS:
            value = getattr(view, key)
            partly = getattr(part[name], key)
            if value is None:
                continue
            same = torch.equal(value, getattr(again[name], key))
            case.expect(same, f"the same draws give another {key} of view {name!r}", fix=fix)
            close = partly is not None and partly.shape == value[2:4].shape and torch.allclose(partly, value[2:4])
            case.expect(close, f"{key} of view {name!r} depends on the other samples of the batch", fix=fix)
        changed = not torch.equal(view.noise, later[name].noise)
        case.expect(changed, f"every step has the same noise in view {name!r}", fix=fix)
