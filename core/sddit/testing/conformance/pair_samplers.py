"""Check what holds for every pair sampler."""

from __future__ import annotations

import math
from typing import Any

import torch

from sddit.diffusion.masking import keep_count
from sddit.interfaces import Context, View, ViewSpec
from sddit.testing import fixtures as things
from sddit.testing.kit import Case, Findings
from sddit.value_schedules import value_at

TENSORS = ("x", "t", "labels", "x0", "noise", "visible", "groups")
TOKENS = math.prod(things.GRID)


def examine(case: Case, findings: Findings) -> None:
    """Try a pair sampler on one batch: its views are those its params state, and a function of the keyed draws."""
    with findings.trying("its params were asked for their views", fix="views() returns ViewSpec objects"):
        specs = case.params.views()
        networks = [spec.network for spec in specs]
        findings.expect("student" in networks, "it makes no student view", got=str(networks))
        findings.expect(networks == sorted(networks), "student views come before teacher views", got=str(networks))
        with findings.trying("it made views"):
            sampler = case.build(grid=things.GRID)
            views = made(sampler, findings=findings)
            if not isinstance(views, dict) or list(views) != [spec.name for spec in specs]:
                got = str(list(views)) if isinstance(views, dict) else type(views).__name__
                findings.add("it makes other views than its params state", got=got, expect=str([s.name for s in specs]))
                return
            for spec in specs:
                examine_view(spec, views[spec.name], findings)
            examine_draws(sampler, views, findings)


def made(sampler: Any, step: int = things.STEP, rows: slice = slice(None), findings: Findings | None = None) -> Any:
    """Return the views of (some rows of) the batch at a step."""
    batch = things.batch(torch.float64, rows)
    context: Context = things.context(step, rows)
    before = things.copied({"x0": batch.x0, "labels": batch.labels})
    with things.no_global_randomness(findings or Findings(""), "it"):
        views = sampler(batch, context.draws, context.schedule, context)
    if findings:
        now = {"x0": batch.x0, "labels": batch.labels}
        things.unchanged(findings, before, now, "it changed the batch", "work on a copy")
    return views


def examine_view(spec: ViewSpec, view: View, findings: Findings) -> None:
    """Check one view: its shapes, the noise it states, the tokens it hides."""
    name, image = spec.name, (things.BATCH, *things.IMAGE)
    findings.expect(
        view.network == spec.network, f"view {name!r} is for the wrong network", got=view.network, expect=spec.network
    )
    shaped = [
        things.is_shaped(findings, getattr(view, key), image, f"{key} of view {name!r}") for key in ("x", "x0", "noise")
    ]
    per_token = isinstance(view.t, torch.Tensor) and view.t.dim() == 2
    shaped.append(
        things.is_shaped(
            findings, view.t, (things.BATCH, TOKENS) if per_token else (things.BATCH,), f"t of view {name!r}"
        )
    )
    things.is_shaped(findings, view.labels, (things.BATCH,), f"labels of view {name!r}")
    if all(shaped) and not per_token:
        expected = things.schedule().perturb(view.x0, view.noise, view.t)
        close = torch.allclose(view.x, expected.to(view.x), rtol=1e-4, atol=1e-5)
        findings.expect(
            close, f"x of view {name!r} is not alpha(t) x0 + sigma(t) noise", fix="schedule.perturb(x0, noise, t)"
        )
    examine_mask(spec, view, findings)


def examine_mask(spec: ViewSpec, view: View, findings: Findings) -> None:
    """As many visible tokens as the stated ratio leaves, each once, in rising order."""
    ratio = value_at(spec.mask_ratio, things.STEP, things.STEPS)
    most, least = keep_count(TOKENS, ratio), keep_count(TOKENS, ratio + spec.mask_spread)
    if view.visible is None:
        findings.expect(
            most == TOKENS, f"view {spec.name!r} hides nothing", expect=f"{most} of {TOKENS} visible tokens"
        )
        return
    kept = min(max(view.visible.shape[-1], least), most)
    what = f"visible of view {spec.name!r}"
    if things.is_shaped(findings, view.visible, (things.BATCH, kept), what, "sddit.diffusion.masking draws masks"):
        inside = bool(((view.visible >= 0) & (view.visible < TOKENS)).all())
        rising = bool((view.visible.diff(dim=1) > 0).all())
        findings.expect(
            inside and rising, f"{what} are not rising token numbers", expect=f"0 to {TOKENS - 1}, each once"
        )


def examine_draws(sampler: Any, views: dict[str, View], findings: Findings) -> None:
    """Check that the same draws give the same views in any part of the batch, and another step other noise."""
    again, part, later = made(sampler), made(sampler, rows=slice(2, 4)), made(sampler, step=things.STEP + 1)
    fix = "draw from `draws`, with one purpose for each use"
    for name, view in views.items():
        for key in TENSORS:
            value = getattr(view, key)
            if value is None:
                continue
            findings.expect(
                torch.equal(value, getattr(again[name], key)),
                f"the same draws give another {key} of view {name!r}",
                fix=fix,
            )
            partly = getattr(part[name], key)
            close = partly is not None and partly.shape == value[2:4].shape and torch.allclose(partly, value[2:4])
            findings.expect(close, f"{key} of view {name!r} depends on the other samples of the batch", fix=fix)
        changed = not torch.equal(view.noise, later[name].noise)
        findings.expect(changed, f"every step has the same noise in view {name!r}", fix=fix)
