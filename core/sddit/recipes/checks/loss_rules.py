"""Check that losses, views, taps and masks fit each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from sddit.diffusion.masking import keep_count
from sddit.errors import Problem, SdditError, one_of
from sddit.recipes.checks.contracts import conflict
from sddit.recipes.recipe import Recipe
from sddit.value_schedules import extremes


def check_losses(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.active_losses:
        labels = ", ".join(recipe.losses) or "none"
        yield conflict("no loss has a weight above 0", "loss", labels, "at least one loss")


def check_views(recipe: Recipe) -> Iterator[Problem]:
    """Check that each loss has the views it reads, and a teacher if it needs one."""
    made = {view.name: view.network for view in recipe.pair_sampler.params.views()}
    sampler = recipe.pair_sampler.component.name
    offers = {
        network: f"one of {', '.join(name for name, of in made.items() if of == network)}"
        for network in ("student", "teacher")
    }
    for label, chosen in recipe.active_losses.items():
        key = f"loss.{label}"
        for name in chosen.params.views:
            if name not in made:
                what = f"pair sampler {sampler!r} has no view {name!r}"
                yield Problem("SD-R112", what, f"{key}.views", name, one_of(name, made))
        networks = {view.network for view in recipe.views_of(chosen.params)}
        if "student" not in networks and set(chosen.params.views) <= made.keys():
            yield conflict(f"loss {label!r} reads no student view", f"{key}.views", expect=offers["student"])
        if chosen.params.needs().teacher is not None and "teacher" not in networks:
            got = f"pair sampler {sampler!r} with the views {', '.join(made)}"
            expect = offers["teacher"] if "teacher" in made.values() else "a pair sampler with one"
            fix = f"choose one (sddit-run show pair_samplers), or loss.{label}.weight = 0"
            yield conflict(f"loss {label!r} needs a teacher view", key, got, expect, fix)


def check_taps(recipe: Recipe) -> Iterator[Problem]:
    """Check that the backbone has the taps that losses read, and a class token if one is read."""
    backbone, name = recipe.backbone.params, recipe.backbone.component.name
    for label, chosen in recipe.active_losses.items():
        needs = chosen.params.needs()
        for want in filter(None, (needs.student, needs.teacher)):
            for tap in want.taps:
                try:
                    backbone.width(tap)
                except ValueError as refused:
                    what = f"backbone {name!r} has no tap {tap!r} for loss {label!r}"
                    yield Problem("SD-R113", what, f"loss.{label}", expect=str(refused))
            if want.cls and not backbone.has_cls:
                what = f"loss {label!r} reads a class token, but backbone {name!r} has none"
                enable = f"enable one in the backbone (sddit-run show backbones {name})"
                yield conflict(what, f"loss.{label}", fix=f"{enable}, or disable that part of the loss")


def check_heads(recipe: Recipe) -> Iterator[Problem]:
    """Check that the backbone has the auxiliary heads that losses and guidance read."""
    known, name = recipe.backbone.params.head_tokens, recipe.backbone.component.name
    readers = {f"loss.{label}": chosen.params.needs().student.heads for label, chosen in recipe.active_losses.items()}
    for key, heads in {**readers, "guidance": recipe.guidance.params.heads}.items():
        for head in heads:
            if head not in known:
                what = f"backbone {name!r} has no auxiliary head {head!r}, which {key} reads"
                fix = f"add it to the backbone (sddit-run show backbones {name})"
                yield Problem("SD-R113", what, key, head, one_of(head, known) if known else "a backbone with it", fix)


def check_masks(recipe: Recipe) -> Iterator[Problem]:
    """Check that masked views keep some tokens, and that the backbone supports masking."""
    backbone, name = recipe.backbone.params, recipe.backbone.component.name
    for view in recipe.pair_sampler.params.views():
        if not view.is_masked:
            continue
        highest = extremes(view.mask_ratio)[1] + view.mask_spread
        if not backbone.supports_masking:
            what = f"view {view.name!r} hides tokens, but backbone {name!r} does not support masking as configured"
            fix = f"a mask ratio of 0, or a backbone that supports masking (sddit-run show backbones {name})"
            yield conflict(what, "pair_sampler", f"a mask ratio up to {highest:g}", fix=fix)
        try:
            keep_count(math.prod(backbone.grid(recipe.shapes)), highest)
        except SdditError as refused:
            yield from (replace(problem, where="pair_sampler") for problem in refused.problems)


def check_windows(recipe: Recipe) -> Iterator[Problem]:
    """Check that noise windows contain trained levels, and belong to losses with one value per sample."""
    lowest, highest = recipe.noise_schedule.params.t_range
    for label, chosen in recipe.active_losses.items():
        key = f"loss.{label}.window"
        if chosen.params.window is None:
            continue
        if chosen.params.couples_samples:
            what = f"loss {label!r} is one value for the entire batch, so it cannot have a noise window"
            yield conflict(what, key, fix=f"remove {key}")
            continue
        low, high = chosen.params.window
        if low >= high or low >= highest or high <= lowest:
            what = f"the window of loss {label!r} contains no noise level of the schedule"
            expect = f"[low, high] within {lowest:g} to {highest:g}"
            yield conflict(what, key, f"[{low:g}, {high:g}]", expect)
