"""Rules between the slots of a recipe. They ask the components' faces and name no method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from sddit.diffusion.masking import keep_count
from sddit.errors import Problem, SdditError, one_of
from sddit.interfaces import AttentionParams, Needs, Params, Selected
from sddit.recipes.recipe import Recipe, as_view
from sddit.value_schedules import Ramp, extremes, is_zero, step_of


def check(recipe: Recipe) -> list[Problem]:
    """Everything that cannot work together, each problem once. Imports no torch."""
    if unanswered := list(_faces_answer(recipe)):
        return unanswered
    between_terms = (_terms, _views, _taps, _masks, _moments, _windows, _batch)
    rules = (*between_terms, _learning, _attention, _sampling, _evaluation, _guidance, _trackers, _own_checks)
    return list(dict.fromkeys(problem for rule in rules for problem in rule(recipe)))


def check_device(recipe: Recipe, device: str) -> list[Problem]:
    """What stops this recipe from being trained on a device type (`cpu`, `cuda`): its attention kernel."""
    kernel = recipe.attention
    if device in trains_on(kernel.params):
        return []
    only = "" if device not in kernel.params.devices else ", forward only"
    instead = kernels(recipe, lambda params: device in trains_on(params))
    return [
        Problem(
            "SD-R108",
            f"attention kernel {kernel.component.name!r} does not train on {device}{only}",
            where="attention.name",
            got=f"{kernel.component.name} with --device {device}",
            expect=instead,
            fix=" or ".join(f"--device {name}" for name in trains_on(kernel.params)),
        )
    ]


def trains_on(kernel: AttentionParams) -> list[str]:
    """The device types on which a kernel goes forward and backward."""
    return [device for device in kernel.devices if device in kernel.backward_devices]


def kernels(recipe: Recipe, serves: Callable[[AttentionParams], bool]) -> str:
    """The installed kernels that serve, for the `expect` of a problem."""
    names = [name for name, params in recipe.kernels.items() if serves(params)]
    return f"one of {', '.join(names)}" if names else "a kernel that serves it: none is installed"


def components(recipe: Recipe) -> dict[str, Selected[Any]]:
    """Every chosen component by the dotted key of its table; a term of weight 0 is not among them."""
    slots = ("backbone", "noise_schedule", "pair_sampler", "attention", "dataset", "sampler", "guidance", "optimizer")
    return {
        **{slot: getattr(recipe, slot) for slot in slots},
        **{f"loss.{label}": chosen for label, chosen in recipe.active_losses.items()},
        **{f"tracker.{label}": chosen for label, chosen in recipe.trackers.items()},
        **{
            f"{'features' if recipe.has_table(label) else 'evaluate.features'}.{label}": chosen
            for label, chosen in recipe.features.items()
        },
    }


def _faces_answer(recipe: Recipe) -> Iterator[Problem]:
    """What every check and the plan build on must be answered; a plugin's author hears which method is at fault."""
    questions: list[tuple[str, str, Callable[[], object], type]] = [
        ("backbone", "grid", lambda: recipe.backbone.params.grid(recipe.shapes), Sequence),
        ("noise_schedule", "t_range", lambda: recipe.noise_schedule.params.t_range, Sequence),
        ("noise_schedule", "level_range", lambda: recipe.noise_schedule.params.level_range, Sequence),
        ("pair_sampler", "views", recipe.pair_sampler.params.views, Sequence),
        *((f"loss.{label}", "needs", chosen.params.needs, Needs) for label, chosen in recipe.active_losses.items()),
    ]
    for key, method, ask, kind in questions:
        try:
            if not isinstance(answer := ask(), kind):
                raise TypeError(f"it gave {type(answer).__name__}, not {kind.__name__}")
        except SdditError as known:
            yield from known.problems
        except ValueError as refused:
            yield Problem("SD-R108", str(refused), where=key, fix=f"change what it names in [{key}]")
        except Exception as failure:
            yield _broken(key, components(recipe)[key], method, failure)


def _own_checks(recipe: Recipe) -> Iterator[Problem]:
    """The rules that the chosen components declare themselves."""
    for key, chosen in components(recipe).items():
        try:
            yield from chosen.params.check(as_view(recipe))
        except Exception as failure:
            yield _broken(key, chosen, "check", failure)


def _broken(key: str, chosen: Selected[Any], method: str, failure: Exception) -> Problem:
    return Problem(
        "SD-P220",
        f"{chosen.component.qualified} cannot answer {type(chosen.params).__name__}.{method}",
        where=key,
        got=f"{type(failure).__name__}: {failure}".rstrip(": "),
        expect="what sddit.interfaces says",
        fix="mend the plugin; sddit.testing.check shows all that it must answer",
    )


# --------------------------------------------------------------------------------------------------------------------
# Terms and views
# --------------------------------------------------------------------------------------------------------------------


def _terms(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.active_losses:
        labels = ", ".join(recipe.losses) or "none"
        yield Problem("SD-R108", "no loss term has a weight above 0", "loss", labels, "at least one term")


def _views(recipe: Recipe) -> Iterator[Problem]:
    """Each term finds the views it reads, and a teacher if it needs one."""
    made = {view.name: view.network for view in recipe.pair_sampler.params.views()}
    sampler = recipe.pair_sampler.component.name
    for label, chosen in recipe.active_losses.items():
        key = f"loss.{label}"
        for name in chosen.params.views:
            if name not in made:
                what = f"pair sampler {sampler!r} makes no view {name!r}"
                yield Problem("SD-R112", what, f"{key}.views", name, one_of(name, made))
        networks = {view.network for view in recipe.views_of(chosen.params)}
        if "student" not in networks and set(chosen.params.views) <= made.keys():
            yield Problem(
                "SD-R108", f"term {label!r} reads no student view", f"{key}.views", expect=_views_of(made, "student")
            )
        if chosen.params.needs().teacher is not None and "teacher" not in networks:
            yield Problem(
                "SD-R108",
                f"term {label!r} needs a teacher view",
                where=key,
                got=f"pair sampler {sampler!r} with the views {', '.join(made)}",
                expect=_views_of(made, "teacher") if "teacher" in made.values() else "a pair sampler that makes one",
                fix=f"choose one (sddit-run show pair_samplers), or loss.{label}.weight = 0",
            )  # fmt: skip


def _views_of(made: Mapping[str, str], network: str) -> str:
    return f"one of {', '.join(name for name, of in made.items() if of == network)}"


def _taps(recipe: Recipe) -> Iterator[Problem]:
    """The backbone has the taps that terms read, and a class token where one is read."""
    backbone = recipe.backbone
    for label, chosen in recipe.active_losses.items():
        needs = chosen.params.needs()
        for want in filter(None, (needs.student, needs.teacher)):
            for tap in want.taps:
                try:
                    backbone.params.width(tap)
                except ValueError as refused:
                    what = f"backbone {backbone.component.name!r} has no tap {tap!r} for term {label!r}"
                    yield Problem("SD-R113", what, f"loss.{label}", expect=str(refused))
            if want.cls and not backbone.params.has_cls:
                yield Problem(
                    "SD-R108",
                    f"term {label!r} reads a class token, and backbone {backbone.component.name!r} has none",
                    where=f"loss.{label}",
                    fix=f"give the backbone one (sddit-run show backbones {backbone.component.name}), "
                    "or leave that part of the term out",
                )


def _masks(recipe: Recipe) -> Iterator[Problem]:
    """A view hides tokens only where the backbone can run without them, and never all of them."""
    rows, columns = recipe.backbone.params.grid(recipe.shapes)
    for view in recipe.pair_sampler.params.views():
        if not view.is_masked:
            continue
        highest = extremes(view.mask_ratio)[1] + view.mask_spread
        if not recipe.backbone.params.supports_masking:
            name = recipe.backbone.component.name
            yield Problem(
                "SD-R108",
                f"view {view.name!r} hides tokens, and backbone {name!r} as set cannot run without them",
                where="pair_sampler",
                got=f"a mask ratio up to {highest:g}",
                fix=f"a mask ratio of 0, or a backbone that can (sddit-run show backbones {name})",
            )
        try:
            keep_count(rows * columns, highest)
        except SdditError as refused:
            yield from (replace(problem, where="pair_sampler") for problem in refused.problems)


# --------------------------------------------------------------------------------------------------------------------
# Moments and sizes
# --------------------------------------------------------------------------------------------------------------------


def _moments(recipe: Recipe) -> Iterator[Problem]:
    """What counts steps fits into the run, and every ramp takes time."""
    total = recipe.train.steps
    for key, chosen in components(recipe).items():
        yield from _ramps(chosen.params, key, total)
    yield from _ramps(recipe.teacher, "teacher", total)
    for label, chosen in recipe.active_losses.items():
        if step_of(chosen.params.until, total) < 1:
            key = f"loss.{label}.until"
            yield Problem("SD-R108", f"term {label!r} ends before the first step", key, fix=f"loss.{label}.weight = 0")
        yield from _beyond(f"loss.{label}.until", chosen.params.until, total)
    yield from _untrained_end(recipe)
    yield from _beyond("optimizer.warmup", recipe.optimizer.params.warmup, total)


def _learning(recipe: Recipe) -> Iterator[Problem]:
    """Something is learned."""
    if is_zero(recipe.optimizer.params.lr):
        yield Problem("SD-R108", "nothing is learned at a learning rate of 0", "optimizer.lr", "lr = 0", "above 0")


def _untrained_end(recipe: Recipe) -> Iterator[Problem]:
    """Some term lasts until the end of the run."""
    total = recipe.train.steps
    ends = {label: step_of(chosen.params.until, total) for label, chosen in recipe.active_losses.items()}
    last = max(ends, key=lambda label: ends[label], default="")
    if last and 1 <= ends[last] <= total - 1:  # the last step is total - 1, and a term acts before `until`
        yield Problem(
            "SD-R108",
            "no loss term is left before the run ends",
            where=f"loss.{last}.until",
            got=f"the last one ends at step {ends[last]:g} of {total}",
            expect="one term that lasts until the end",
            fix=f"leave loss.{last}.until out",
        )


def _ramps(settings: BaseModel, key: str, total: int) -> Iterator[Problem]:
    for name, info in type(settings).model_fields.items():
        value, dotted = getattr(settings, name), f"{key}.{info.alias or name}"
        if isinstance(value, Ramp):
            yield from _beyond(f"{dotted}.until", value.until, total)
            if step_of(value.from_, total) >= step_of(value.until, total):
                got = f"from = {value.from_}, until = {value.until}"
                yield Problem("SD-R108", f"{dotted!r} ends before it begins", dotted, got, "from before until")
        elif isinstance(value, Params):
            yield from _ramps(value, dotted, total)


def _beyond(key: str, moment: float, total: int) -> Iterator[Problem]:
    if isinstance(moment, int) and moment > total:
        yield Problem(
            "SD-R108",
            f"{key!r} lies beyond the end of the run",
            where=key,
            got=f"{moment} of {total} steps",
            expect=f"at most {total}",
            fix=f"{key} = {total}, or a share of the run such as 0.1",
        )


def _windows(recipe: Recipe) -> Iterator[Problem]:
    """A noise window holds some of the levels that the schedule trains, and belongs to a term that counts by sample."""
    lowest, highest = recipe.noise_schedule.params.t_range
    for label, chosen in recipe.active_losses.items():
        if chosen.params.window is None:
            continue
        if chosen.params.couples_samples:
            yield Problem(
                "SD-R108",
                f"term {label!r} is one number for the whole batch: no sample of it can count 0",
                where=f"loss.{label}.window",
                fix=f"leave loss.{label}.window out",
            )
            continue
        low, high = chosen.params.window
        if low >= high or low >= highest or high <= lowest:
            yield Problem(
                "SD-R108",
                f"no noise level lies in the window of term {label!r}",
                where=f"loss.{label}.window",
                got=f"[{low:g}, {high:g}]",
                expect=f"[low, high] within {lowest:g} to {highest:g}",
            )


def _batch(recipe: Recipe) -> Iterator[Problem]:
    """The batch is made of micro-batches, and of images that exist."""
    batch, micro = recipe.train.batch, recipe.train.micro_batch or recipe.train.batch
    if batch % micro:
        got, fits = f"batch = {batch}, micro_batch = {micro}", max(n for n in range(1, micro + 1) if batch % n == 0)
        what = "the micro-batch does not divide the batch"
        yield Problem("SD-R108", what, "train.micro_batch", got, fix=f"train.micro_batch = {fits}")
    for label, chosen in recipe.active_losses.items():
        if micro < batch and chosen.params.couples_samples:
            yield Problem(
                "SD-R108",
                f"term {label!r} compares the images of a batch, which micro-batches would tear apart",
                where="train.micro_batch",
                got=f"batch = {batch}, micro_batch = {micro}",
                fix=f"train.micro_batch = {batch}, or a smaller batch",
            )
    if batch > recipe.facts.train_size and recipe.dataset.params.holds_images:
        yield Problem(
            "SD-D305",
            "the training split is smaller than one batch",
            where="train.batch",
            got=f"batch = {batch}, images = {recipe.facts.train_size}",
            fix=f"train.batch = {recipe.facts.train_size} or less",
        )


def check_processes(recipe: Recipe, count: int) -> Iterator[Problem]:
    """Each of `count` processes takes an equal part of every forward pass."""
    key = "train.micro_batch" if recipe.train.micro_batch else "train.batch"
    images = recipe.train.micro_batch or recipe.train.batch
    if images % count:
        fits = max(n for n in range(1, min(images, count) + 1) if images % n == 0)
        yield Problem(
            "SD-C421",
            f"the images of one forward pass are not divisible by {count} processes",
            where=key,
            got=f"{key.removeprefix('train.')} = {images}, {count} processes",
            expect="as many images for every process",
            fix=f"{fits} processes, or {key}={-(-images // count) * count}",
        )


# --------------------------------------------------------------------------------------------------------------------
# The other slots
# --------------------------------------------------------------------------------------------------------------------


def _attention(recipe: Recipe) -> Iterator[Problem]:
    kernel, precision = recipe.attention, recipe.train.precision
    if precision not in kernel.params.dtypes:
        yield Problem(
            "SD-R108",
            f"attention kernel {kernel.component.name!r} does not compute in {precision}",
            where="train.precision",
            got=precision,
            expect=one_of(precision, kernel.params.dtypes),
            fix=f"that, or attention.name = {kernels(recipe, lambda params: precision in params.dtypes)}",
        )
    backbone = recipe.backbone
    if backbone.params.needs_bias and not kernel.params.takes_bias:
        yield Problem(
            "SD-R108",
            f"backbone {backbone.component.name!r} adds a bias to its attention, which kernel {kernel.component.name!r} cannot",
            where="attention.name",
            got=kernel.component.name,
            expect=kernels(recipe, lambda params: params.takes_bias and precision in params.dtypes),
        )


def _sampling(recipe: Recipe) -> Iterator[Problem]:
    """Sampling begins above the level at which it ends, on a grid and with outputs that the model has."""
    given, schedule = recipe.sampler.params, recipe.noise_schedule
    if given.grid not in schedule.params.grids:
        yield Problem(
            "SD-R108",
            f"noise schedule {schedule.component.name!r} has no grid {given.grid!r}",
            where="sampler.grid",
            got=given.grid,
            expect=one_of(given.grid, schedule.params.grids),
        )
    if given.needs_variance and schedule.params.outputs < 2:
        yield Problem(
            "SD-R108",
            f"sampler {recipe.sampler.component.name!r} needs a learned variance, and this model has none",
            where="sampler.name",
            got=f"noise schedule {schedule.component.name!r} with one output",
            fix="a schedule that learns one, or another sampler: sddit-run show samplers",
        )
    lowest, highest = recipe.noise_schedule.params.level_range
    low = lowest if given.sigma_min is None else given.sigma_min
    high = highest if given.sigma_max is None else given.sigma_max
    if low >= high:
        keys = [f"sampler.{key}" for key in ("sigma_min", "sigma_max") if getattr(given, key) is not None]
        yield Problem(
            "SD-T902",
            "sampling has no noise to remove: the lowest level is not below the highest",
            where=keys[0] if keys else "noise_schedule",
            got=f"sigma_min = {low:g}, sigma_max = {high:g}",
            expect=f"sigma_min < sigma_max; the schedule's own are {lowest:g} and {highest:g}",
            fix=f"leave {' and '.join(keys)} out" if keys else "",
        )


def _evaluation(recipe: Recipe) -> Iterator[Problem]:
    yield from _few_images(recipe)
    if recipe.evaluate.probe and recipe.facts.num_classes < 2:
        yield Problem(
            "SD-T931",
            "no classes to probe",
            "evaluate.probe",
            f"{recipe.facts.num_classes} classes",
            fix="evaluate.probe=false",
        )
    weights = recipe.evaluate.weights
    known = ["student", *recipe.ema]
    if weights and weights not in known:
        yield Problem(
            "SD-R114", f"no weights {weights!r} to sample", "evaluate.weights", weights, one_of(weights, known)
        )


def _few_images(recipe: Recipe) -> Iterator[Problem]:
    """Every set that is scored, or probed, needs more images than one of them has neighbours, and two to have a spread."""
    least = max(2, recipe.evaluate.neighbours + 1)
    splits = "dataset.holdout" if "holdout" in type(recipe.dataset.params).model_fields else "dataset"
    sets = (
        ("samples", recipe.evaluate.samples, "evaluate.samples", f"evaluate.samples = {least}"),
        ("held-out images", recipe.facts.test_size, splits, f"a higher {splits}"),
        ("training images", recipe.facts.train_size, splits, f"a lower {splits}"),
    )
    looked_at = sets if recipe.features else sets[1:] if recipe.evaluate.probe else ()
    for what, count, key, remedy in looked_at:
        if count < least:
            yield Problem(
                "SD-T906",
                f"too few {what} to score",
                where=key,
                got=str(count),
                expect=f"at least {least} for evaluate.neighbours = {recipe.evaluate.neighbours}",
                fix=f"{'more images' if key == 'dataset' else remedy}, or {'evaluate.features=[]' if recipe.features else 'evaluate.probe=false'}",
            )


def _guidance(recipe: Recipe) -> Iterator[Problem]:
    rule = recipe.guidance
    if not rule.params.needs_null_label:
        return
    if recipe.facts.num_classes == 0:
        what = f"guidance {rule.component.name!r} needs classes, and the data has none"
        yield Problem("SD-T903", what, "guidance.name", rule.component.name, fix='guidance.name = "none"')
    elif recipe.dataset.params.label_drop == 0:
        yield Problem(
            "SD-T903",
            f"guidance {rule.component.name!r} needs a model that was trained with dropped labels",
            where="dataset.label_drop",
            got="label_drop = 0",
            fix='dataset.label_drop = 0.1, or guidance.name = "none"',
        )


def _trackers(recipe: Recipe) -> Iterator[Problem]:
    """Two trackers of one component would write the same files."""
    first: dict[str, str] = {}
    for label, chosen in recipe.trackers.items():
        name = chosen.component.qualified
        if first.setdefault(name, label) != label:
            yield Problem(
                "SD-R108",
                f"the trackers {first[name]!r} and {label!r} are the same component",
                where=f"tracker.{label}",
                got=f"name = {name}",
                expect="each tracker once",
                fix=f"remove [tracker.{label}]",
            )


# --------------------------------------------------------------------------------------------------------------------
# What has no effect
# --------------------------------------------------------------------------------------------------------------------


def idle_keys(recipe: Recipe, given: Iterable[str]) -> list[str]:
    """Those of the given dotted keys that change nothing in this recipe."""
    prefixes = [f"loss.{label}." for label in recipe.losses if label not in recipe.active_losses]
    if all(chosen.params.needs().teacher is None for chosen in recipe.active_losses.values()):
        prefixes.append("teacher.")
    labels = {key.split(".")[1] for key in given if key.startswith("features.")}
    prefixes += [f"features.{label}." for label in labels if label not in recipe.features]
    keys = {f"loss.{label}.{key}" for label in recipe.losses for key in ("name", "weight")}
    silent = set()
    if recipe.sampler.params.grid != "edm":
        silent.add("sampler.rho")
    if recipe.facts.num_classes == 0:
        silent |= {"dataset.label_drop", "evaluate.labels", "evaluate.per_class"}
    if recipe.evaluate.previews == 0:
        silent.add("evaluate.per_class")
    if not recipe.features:
        silent |= {f"evaluate.{key}" for key in ("neighbours", "kid_subsets", "kid_subset_size")}
    if not _trains_heads(recipe):
        silent.add("optimizer.head_lr")
    if recipe.optimizer.params.clip is None:
        silent.add("optimizer.clip_scope")
    silent |= set(_named_idle(recipe))
    prefixes += [f"{key}." for key in silent]  # where it is a table, such as a ramp
    return [key for key in given if key in silent or (key.startswith(tuple(prefixes)) and key not in keys)]


def own_warnings(recipe: Recipe) -> list[str]:
    """What the chosen components warn of, each sentence after the key of its table."""
    found = []
    for key, chosen in components(recipe).items():
        try:
            found += [f"{key}: {text}" for text in chosen.params.warnings(as_view(recipe))]
        except Exception as failure:
            raise SdditError(_broken(key, chosen, "warnings", failure)) from failure
    return found


def _trains_heads(recipe: Recipe) -> bool:
    """Return whether some loss trains modules of its own, naming the loss that cannot answer."""
    for label, chosen in recipe.active_losses.items():
        try:
            if recipe.trains_head(chosen.params):
                return True
        except Exception as failure:
            raise SdditError(_broken(f"loss.{label}", chosen, "cost", failure)) from failure
    return False


def _named_idle(recipe: Recipe) -> Iterator[str]:
    """The dotted keys that components call idle themselves, as far as they are set to other than their defaults."""
    for key, chosen in components(recipe).items():
        defaults = type(chosen.params).model_fields
        try:
            for name in chosen.params.idle(as_view(recipe)):
                if getattr(chosen.params, name) != defaults[name].default:
                    yield f"{key}.{name}"
        except Exception as failure:
            raise SdditError(_broken(key, chosen, "idle", failure)) from failure
