"""Estimate the cost of a recipe from its components' formulas. Torch-free; nothing is run.

FLOPs count two per multiply-add. A student's view costs its forward three times (the backward pass takes two), a
teacher's view once. A component that states no cost leaves the sums it belongs to unknown, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar, cast

from sddit.diffusion.masking import keep_count
from sddit.errors import SdditError
from sddit.interfaces import BackboneParams, Cost, Network, Selected, ViewSpec, Want
from sddit.plugins.host import registry
from sddit.recipes.recipe import Recipe
from sddit.recipes.start_weights import tables_of
from sddit.recipes.validation import validated
from sddit.value_schedules import Ramp, extremes, step_of, value_at

N = TypeVar("N", int, float)

Distributed = Literal["ddp", "fsdp"]

TRAINING = {"student": 3, "teacher": 1}
"""Cost of a training pass of a view, in forward passes."""

MAX_MOMENTS = 200
"""Maximum number of steps at which a changing mask ratio or weight is evaluated."""

BYTES = {"fp32": 4, "bf16": 4, "fp64": 8}  # of a weight; under bf16 the weights stay fp32
SNAPSHOT_BYTES = {"fp32": 4, "fp16": 2}
ACTIVATION_BYTES = {"fp32": 4, "bf16": 2, "fp64": 8}

CHECKPOINTING = (
    "blocks are recomputed in the backward pass: activations take less memory than stated, "
    "and a step takes more FLOPs and time"
)


@dataclass(frozen=True, slots=True)
class Pass:
    """One view of an image in a training step, averaged over the run. None: some component does not state it."""

    view: str
    network: Network
    kept: float  # visible tokens
    backbone_flops: float | None  # of one image and training step, backward included
    heads_flops: float | None

    @property
    def flops(self) -> float | None:
        return _sum((self.backbone_flops, self.heads_flops))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak of a training step in one process, which has a device of its own. None: not stated."""

    weights: int | None
    gradients: int | None
    optimizer: int | None
    averages: int | None  # the [ema] copies
    teacher: int | None
    activations: int | None  # of its images of one micro-batch, kept for the backward pass

    def per_process(self, processes: int, distributed: Distributed) -> Memory:
        """Return what each of several processes holds of this, the memory of a single one.

        Each has an equal part of the images, so activations are divided by N, the number of processes. With ddp, the
        rest is whole on every process, and there are gradients once more, in the buckets that are averaged. With fsdp,
        each holds 1/N of weights, gradients, optimizer states, averages and teacher. Not counted: the blocks that fsdp
        gathers while they compute, buffers, the allocator's reserve, and what the CUDA context takes.
        """
        activations = divided(self.activations, processes)
        if distributed == "fsdp":
            sizes = {name: divided(size, processes) for name, size in asdict(self).items()}
            return Memory(**{**sizes, "activations": activations})
        copies = 2 if processes > 1 else 1
        return replace(self, gradients=_times(self.gradients, copies), activations=activations)

    @property
    def total(self) -> int | None:
        return _sum(asdict(self).values())


def divided(size: int | None, parts: int) -> int | None:
    """Return the largest of equal parts."""
    return None if size is None else -(-size // parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cost of a run. None stands for what some component does not state; `not_stated` names it."""

    name: str
    run_id: str
    steps: int
    batch: int
    tokens: int  # of one image
    backbone_parameters: int | None
    heads_parameters: Mapping[str, int | None]  # by label of the loss; they are trained and not exported
    frozen_parameters: int  # of the losses, as far as they state them
    teacher_parameters: int | None  # 0: no loss needs a teacher
    passes: tuple[Pass, ...]  # the views that some loss reads
    course: tuple[float | None, ...]  # FLOPs of a step in equal parts of the run: one part if all steps cost the same
    sampling_flops_per_image: float | None
    sampled: int  # images generated at the end
    processes: int
    memory: Memory  # of one process
    snapshots: int  # of the EMAs that have some, over the run
    snapshot_bytes: int | None  # that they take in the run folder
    not_stated: tuple[str, ...]
    notes: tuple[str, ...]
    flops_per_image: float | None  # of one training step, backward included
    flops_per_step: float | None  # of a batch, and of the optimizer's update
    update_flops: float | None  # of that update, as far as the optimizer states them
    training_flops: float | None  # of the entire run
    sampling_flops: float | None  # of the images at the end of the run, without previews

    def to_json(self) -> dict[str, Any]:
        tables = asdict(self)
        tables["memory"]["total"] = self.memory.total
        return tables


def plan(recipe: Recipe) -> Plan:
    """Return the cost of `recipe` by the formulas of its components."""
    stated, train = _StatedCosts(recipe), recipe.train
    full = stated.backbone(stated.tokens, Want(output=True))
    parameters, matrices = (full.parameters, full.matrices) if full else (None, ())
    optimizer = recipe.optimizer.params
    heads = {label: stated.head_parameters(label, "student") for label in recipe.active_losses}
    frozen, teacher = stated.frozen_parameters(), stated.teacher_parameters()
    passes = stated.passes()
    means = tuple(map(_mean_pass, passes))
    per_image = _sum(one.flops for one in means)
    update = stated.update_flops(full)
    per_step = _sum((_times(per_image, train.batch), update))
    guided = _sum((stated.guided_flops(), stated.second_flops(full)))
    per_sample = _times(guided, recipe.sampler.params.evaluations)
    # Weights stay in the precision of the optimizer; bf16 halves only the activations.
    weight = BYTES[train.precision]
    num_trained = _sum([parameters, *heads.values()])
    trained = _times(num_trained, weight)
    activations = _times(stated.activations(), (train.micro_batch or train.batch) * ACTIVATION_BYTES[train.precision])
    memory = Memory(
        weights=_sum((trained, weight * frozen)),
        gradients=trained,
        optimizer=None if num_trained is None else weight * optimizer.state_size(num_trained, matrices),
        averages=_times(parameters, weight * len(recipe.ema)),
        teacher=_times(teacher, weight),
        activations=None if activations is None else round(activations),
    )
    return Plan(
        name=recipe.name,
        run_id=recipe.run_id,
        steps=train.steps,
        batch=train.batch,
        tokens=stated.tokens,
        backbone_parameters=parameters,
        heads_parameters=heads,
        frozen_parameters=frozen,
        teacher_parameters=teacher,
        passes=means,
        course=tuple(
            _sum((_times(_sum(one.flops for one in step), train.batch), update)) for step in zip(*passes, strict=True)
        ),
        sampling_flops_per_image=per_sample,
        sampled=recipe.evaluate.samples,
        processes=recipe.processes,
        memory=memory.per_process(recipe.processes, train.distributed),
        snapshots=sum(ema.num_snapshots(train.steps) for ema in recipe.ema.values()),
        snapshot_bytes=snapshot_bytes(recipe, parameters),
        not_stated=tuple(stated.missing),
        notes=(CHECKPOINTING,) if train.activation_checkpointing else (),
        flops_per_image=per_image,
        flops_per_step=per_step,
        update_flops=update,
        training_flops=_times(per_step, train.steps),
        sampling_flops=_times(per_sample, recipe.evaluate.samples),
    )


def snapshot_bytes(recipe: Recipe, parameters: int | None) -> int | None:
    """Return the bytes on disk of all snapshots of EMAs, without the few of their headers."""
    numbers = sum(
        SNAPSHOT_BYTES[ema.snapshot_dtype] * ema.num_snapshots(recipe.train.steps) for ema in recipe.ema.values()
    )
    return _times(parameters, numbers) if numbers else 0


class _StatedCosts:
    """Costs that the components of one recipe state."""

    def __init__(self, recipe: Recipe) -> None:
        rows, columns = recipe.backbone.params.grid(recipe.shapes)
        self.recipe = recipe
        self.tokens = rows * columns
        self.views = {view.name: view for view in recipe.pair_sampler.params.views()}
        self.missing: dict[str, None] = {}  # the components that state none
        self._backbone: dict[tuple[int, Want], Cost | None] = {}

    def backbone(self, num_kept: int, want: Want) -> Cost | None:
        """Return the cost of a backbone forward with `num_kept` visible tokens, up to what `want` needs."""
        key = (num_kept, want)
        if key not in self._backbone:
            params, shapes = self.recipe.backbone.params, self.recipe.shapes
            self._backbone[key] = params.cost(shapes, num_kept=num_kept, taps=want.taps, output=want.output)
        return self._stated(self._backbone[key], "backbone", self.recipe.backbone)

    def guided_flops(self) -> float | None:
        """Return the FLOPs of the run's own network in one guided prediction; some passes may take the dense path."""
        guidance = self.recipe.guidance.params
        full, dense = self.backbone(self.tokens, Want(output=True)), guidance.dense_evaluations
        if full is None or not dense:
            return None if full is None else full.flops * guidance.evaluations
        part = self.backbone(0, Want(output=True))
        return None if part is None else full.flops * (guidance.evaluations - dense) + part.flops * dense

    def update_flops(self, network: Cost | None) -> float | None:
        """Return the FLOPs of the optimizer's update, which every process computes. None: the backbone states no
        matrices, whose sizes they depend on.
        """
        optimizer = self.recipe.optimizer.params
        if not optimizer.takes_roles:
            return 0.0
        if network is None or not network.matrices:
            self.missing[f"matrices of backbone ({self.recipe.backbone.component.qualified})"] = None
            return None
        return self.recipe.processes * optimizer.flops(network.matrices)

    def second_flops(self, own: Cost | None) -> float | None:
        """Return the FLOPs of a forward of the second network of the guidance, 0 if there is none.

        `own` is the cost of the run's own network, which other weights of the same run share.
        """
        second = self.recipe.guidance.params.second_network
        if second is None:
            return 0.0
        cost = self._cost_in(Path(second.run)) if second.run else own
        if cost is None and second.run:
            self.missing["guidance (the second network)"] = None
        return None if cost is None else cost.flops

    def _cost_in(self, folder: Path) -> Cost | None:
        """Return the cost of the network of a run or export; None if its folder is gone or it states none."""
        try:
            table = tables_of(folder)["backbone"]
            component = registry("backbones").usable(table["name"])
            settings = {key: value for key, value in table.items() if key != "name"}
            params = cast(BackboneParams, validated(component.params, settings, table="backbone"))
        except SdditError:
            return None
        shapes = self.recipe.shapes
        return params.cost(shapes, num_kept=math.prod(params.grid(shapes)))

    def head(self, label: str, view: ViewSpec, num_kept: int) -> Cost | None:
        """Return the cost of a loss on one view of one image."""
        chosen = self.recipe.active_losses[label]
        given = self.recipe.backbone.params, self.recipe.shapes, view, num_kept
        cost = chosen.params.cost(*given)
        if cost is not None:
            cost += chosen.params.pair_cost(*given).times(self.recipe.train.batch)
        return self._stated(cost, f"loss.{label}", chosen)

    def head_parameters(self, label: str, network: Network) -> int | None:
        """Return the parameters of a loss's heads. One head serves all its views, so it is counted once."""
        views = [v for v in self.recipe.views_of(self.recipe.active_losses[label].params) if v.network == network]
        costs = [self.head(label, view, self.kept(view, step=0)) for view in views]
        return None if None in costs else max((cost.parameters for cost in costs if cost), default=0)

    def frozen_parameters(self) -> int:
        """Return the parameters of the losses that are stated not to be trained."""
        return sum(
            max((cost.frozen for view in views if (cost := self.head(label, view, self.kept(view, step=0)))), default=0)
            for label, chosen in self.recipe.active_losses.items()
            if (views := self.recipe.views_of(chosen.params))
        )

    def teacher_parameters(self) -> int | None:
        """Return the parameters of the backbone up to its deepest tap, and of the averaged heads."""
        wants = [want for name, want in self.recipe.wants().items() if self.views[name].network == "teacher"]
        if not wants:
            return 0
        cut = self.backbone(self.tokens, reduce(or_, wants))
        heads = [self.head_parameters(label, "teacher") for label in self.recipe.active_losses]
        return None if cut is None else _sum([cut.parameters, *heads])

    def kept(self, view: ViewSpec, step: int) -> int:
        """Return the visible tokens of a view at a step; the middle of the range if their number is random."""
        ratio = value_at(view.mask_ratio, step, self.recipe.train.steps)
        return keep_count(self.tokens, ratio + view.mask_spread / 2)

    def passes(self) -> list[list[Pass]]:
        """Return each view that is run, at the sampled steps."""
        moments = self._moments()
        return [
            [self._pass(view, step) for step in moments]
            for name, view in self.views.items()
            if name in self.recipe.wants()
        ]

    def _moments(self) -> list[int]:
        """Return one step if all cost the same, else the midpoints of equal parts of the run: at most one a step."""
        losses = [chosen.params for chosen in self.recipe.active_losses.values()]
        values = [*(view.mask_ratio for view in self.views.values()), *(loss.weight for loss in losses)]
        steps = self.recipe.train.steps
        is_constant = not any(isinstance(value, Ramp) for value in values) and all(
            step_of(loss.until, steps) >= steps for loss in losses
        )
        parts = 1 if is_constant else min(steps, MAX_MOMENTS)
        return [(2 * part + 1) * steps // (2 * parts) for part in range(parts)]

    def _pass(self, view: ViewSpec, step: int) -> Pass:
        """Return the pass of a view at one step. It costs nothing while no loss that reads it is active."""
        total = self.recipe.train.steps
        active = [
            label
            for label, chosen in self.recipe.active_losses.items()
            if step < step_of(chosen.params.until, total) and value_at(chosen.params.weight, step, total) > 0
        ]
        kept = self.kept(view, step)
        costs = self.of_view(view, kept, active)
        backbone, *heads = [None if cost is None else cost.flops * TRAINING[view.network] for cost in costs]
        return Pass(view.name, view.network, kept, backbone, _sum(heads))

    def of_view(self, view: ViewSpec, num_kept: int, labels: Collection[str]) -> list[Cost | None]:
        """Return the costs of a view: of the backbone, then of each of the losses `labels` that reads it."""
        losses = self.recipe.active_losses
        want = self.recipe.wants(labels).get(view.name)
        if want is None:
            return [Cost()]
        readers = [label for label in labels if view in self.recipe.views_of(losses[label].params)]
        return [self.backbone(num_kept, want), *(self.head(label, view, num_kept) for label in readers)]

    def activations(self) -> float | None:
        """Return the numbers stored for the backward pass of one image, at the maximum number of visible tokens."""
        costs: list[Cost | None] = []
        for view in self.views.values():
            if view.network == "student":  # a teacher has no gradient and stores nothing
                kept = keep_count(self.tokens, extremes(view.mask_ratio)[0])
                costs += self.of_view(view, kept, self.recipe.active_losses)
        return _sum(None if cost is None else cost.activations for cost in costs)

    def _stated(self, cost: Cost | None, key: str, chosen: Selected[Any]) -> Cost | None:
        if cost is None:
            self.missing[f"{key} ({chosen.component.qualified})"] = None
        return cost


def _mean_pass(passes: Sequence[Pass]) -> Pass:
    return Pass(
        passes[0].view,
        passes[0].network,
        fmean(p.kept for p in passes),
        _times(_sum(p.backbone_flops for p in passes), 1 / len(passes)),
        _times(_sum(p.heads_flops for p in passes), 1 / len(passes)),
    )


def _sum(values: Iterable[N | None]) -> N | None:
    """Return the sum, or None if a summand is unknown."""
    total: N | int = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _times(value: N | None, factor: N) -> N | None:
    return None if value is None else value * factor
