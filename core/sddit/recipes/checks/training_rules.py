"""Check that batches, precision, kernels and step counts fit the run and each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import BaseModel

from sddit.errors import Problem, one_of
from sddit.interfaces import AttentionParams, Params
from sddit.interfaces.dataset import small_split_error
from sddit.recipes.checks.contracts import components, conflict
from sddit.recipes.recipe import Recipe
from sddit.value_schedules import Ramp, is_zero, step_of


def check_batch(recipe: Recipe) -> Iterator[Problem]:
    """Check that micro-batches divide the batch, and that the data has a full batch of images."""
    key = "train.micro_batch"
    batch, micro = recipe.train.batch, recipe.train.micro_batch or recipe.train.batch
    got = f"batch = {batch}, micro_batch = {micro}"
    if batch % micro:
        fits = max(n for n in range(1, micro + 1) if batch % n == 0)
        yield conflict("the micro-batch does not divide the batch", key, got, fix=f"{key} = {fits}")
    for label, chosen in recipe.active_losses.items():
        if micro < batch and chosen.params.couples_samples:
            what = f"loss {label!r} needs the entire batch, so it cannot be used with micro-batches"
            yield conflict(what, key, got, fix=f"{key} = {batch}, or a smaller batch")
    if batch > recipe.facts.train_size and recipe.dataset.params.holds_images:
        yield from small_split_error(recipe.facts.train_size, batch).problems


def check_balance(recipe: Recipe) -> Iterator[Problem]:
    """Check that there are classes to balance."""
    if recipe.dataset.params.balanced and recipe.facts.num_classes < 2:
        got = f"balanced = true, {recipe.facts.num_classes} classes"
        fix = "dataset.balanced = false"
        yield conflict("there are no classes to balance", "dataset.balanced", got, "at least 2 classes", fix)


def check_processes(recipe: Recipe, count: int) -> Iterator[Problem]:
    """Check that each of `count` processes gets an equal part of every forward pass."""
    key = "micro_batch" if recipe.train.micro_batch else "batch"
    images = recipe.train.micro_batch or recipe.train.batch
    if images % count:
        fits = max(n for n in range(1, min(images, count) + 1) if images % n == 0)
        yield Problem(
            "SD-C421",
            f"the images of one forward pass are not divisible by {count} processes",
            where=f"train.{key}",
            got=f"{key} = {images}, {count} processes",
            expect="the same number of images for every process",
            fix=f"{fits} processes" + (f", or train.{key}={-(-images // count) * count}" if count < images else ""),
        )


def check_attention(recipe: Recipe) -> Iterator[Problem]:
    """Check that the attention kernel serves the precision and the backbone."""
    kernel, name = recipe.attention.params, recipe.attention.component.name
    precision = recipe.train.precision
    if precision not in kernel.dtypes:
        what = f"attention kernel {name!r} does not compute in {precision}"
        fix = f"that, or attention.name = {suitable_kernels(recipe, lambda params: precision in params.dtypes)}"
        yield conflict(what, "train.precision", precision, one_of(precision, kernel.dtypes), fix)
    if recipe.backbone.params.needs_bias and not kernel.takes_bias:
        backbone = f"backbone {recipe.backbone.component.name!r}"
        what = f"{backbone} adds a bias to its attention, which kernel {name!r} does not support"
        expect = suitable_kernels(recipe, lambda params: params.takes_bias and precision in params.dtypes)
        yield conflict(what, "attention.name", name, expect)


def check_device(recipe: Recipe, device: str) -> list[Problem]:
    """Return why this recipe cannot train on a device type (`cpu`, `cuda`): its attention kernel."""
    kernel, name = recipe.attention.params, recipe.attention.component.name
    if device in trains_on(kernel):
        return []
    only = ", forward only" if device in kernel.devices else ""
    what = f"attention kernel {name!r} does not train on {device}{only}"
    expect = suitable_kernels(recipe, lambda params: device in trains_on(params))
    fix = " or ".join(f"--device {other}" for other in trains_on(kernel))
    return [conflict(what, "attention.name", f"{name} with --device {device}", expect, fix)]


def trains_on(kernel: AttentionParams) -> list[str]:
    """Return the device types on which a kernel runs forward and backward."""
    return [device for device in kernel.devices if device in kernel.backward_devices]


def suitable_kernels(recipe: Recipe, is_suitable: Callable[[AttentionParams], bool]) -> str:
    """Return the installed kernels that are suitable, for the `expect` of a problem."""
    names = [name for name, params in recipe.kernels.items() if is_suitable(params)]
    return f"one of {', '.join(names)}" if names else "a suitable kernel: none is installed"


def check_learning_rate(recipe: Recipe) -> Iterator[Problem]:
    """Check that the learning rate is not 0."""
    if is_zero(recipe.optimizer.params.lr):
        yield conflict("nothing is learned at a learning rate of 0", "optimizer.lr", "lr = 0", "above 0")


def check_times(recipe: Recipe) -> Iterator[Problem]:
    """Check that step counts fit into the run, that every ramp has a positive length, and that a loss lasts."""
    total = recipe.train.steps
    for key, chosen in components(recipe).items():
        yield from _ramps(chosen.params, key, total)
    yield from _ramps(recipe.teacher, "teacher", total)
    ends = {label: step_of(chosen.params.until, total) for label, chosen in recipe.active_losses.items()}
    for label, chosen in recipe.active_losses.items():
        if ends[label] < 1:
            fix = f"loss.{label}.weight = 0"
            yield conflict(f"loss {label!r} ends before the first step", f"loss.{label}.until", fix=fix)
        yield from _within_run(f"loss.{label}.until", chosen.params.until, total)
    last = max(ends, key=lambda label: ends[label], default="")
    if last and 1 <= ends[last] <= total - 1:  # the last step is total - 1, and a loss acts before `until`
        key = f"loss.{last}.until"
        got = f"the last one ends at step {ends[last]:g} of {total}"
        expect = "one loss that lasts until the end"
        yield conflict("all losses end before the run does", key, got, expect, f"remove {key}")
    yield from _within_run("optimizer.warmup", recipe.optimizer.params.warmup, total)


def _ramps(settings: BaseModel, key: str, total: int) -> Iterator[Problem]:
    for name, info in type(settings).model_fields.items():
        value, dotted = getattr(settings, name), f"{key}.{info.alias or name}"
        if isinstance(value, Ramp):
            yield from _within_run(f"{dotted}.until", value.until, total)
            if step_of(value.from_, total) >= step_of(value.until, total):
                got = f"from = {value.from_}, until = {value.until}"
                yield conflict(f"{dotted!r} ends before it begins", dotted, got, "from before until")
        elif isinstance(value, Params):
            yield from _ramps(value, dotted, total)


def _within_run(key: str, moment: float, total: int) -> Iterator[Problem]:
    if isinstance(moment, int) and moment > total:
        what = f"{key!r} is after the end of the run"
        fix = f"{key}=0.1" if key == "optimizer.warmup" else f"{key}=1.0"  # a fraction fits any length
        yield conflict(what, key, f"{moment} of {total} steps", f"at most {total}, or a fraction such as 0.1", fix)
