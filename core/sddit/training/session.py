"""Everything that training depends on, built from a recipe, saved whole and restored whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import or_
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.distributed.fsdp import FSDPModule

from sddit.draws import generator
from sddit.errors import error
from sddit.exchange.weights import begin_from
from sddit.interfaces import Backbone, Dataset, NoiseSchedule, PairSampler
from sddit.recipes.recipe import Recipe
from sddit.recipes.settings import Precision, TrainSettings
from sddit.training import tensors as safetensors_bridge
from sddit.training.averages import Teacher, WeightAverage, under
from sddit.training.checkpoints import Checkpoint
from sddit.training.distribution import World, parallel, part_like, parts_like, whole
from sddit.training.objective import Objective, Student
from sddit.training.sealed import Content, Late

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""The dtype of weights. bf16 is an autocast over float32 weights."""


@dataclass(slots=True)
class Session:
    """The state of a run between two steps."""

    recipe: Recipe
    device: torch.device
    dataset: Dataset
    schedule: NoiseSchedule
    pair_sampler: PairSampler
    objective: Objective
    student: Student
    teacher: Teacher | None
    averages: dict[str, WeightAverage]
    optimizer: torch.optim.Optimizer
    world: World
    root: nn.Module  # what is called in the student's place: itself, or what averages its gradients over the world
    step: int = 0  # optimizer steps taken
    seconds: float = 0.0  # spent training, earlier sittings included
    tally: dict[str, Tensor] = field(default_factory=dict)  # of this log interval: sum and count, [2] float64
    skipped: list[int] = field(default_factory=list)  # steps that were not taken: their numbers were not finite
    built_with: list[dict[str, float]] = field(init=False)  # numbers in the optimizer's groups before the first step
    notes: list[str] = field(default_factory=list)  # what a person should be told once, before the first step

    def __post_init__(self) -> None:
        self.built_with = numbers_of(self.optimizer)

    @property
    def total_steps(self) -> int:
        return self.recipe.train.steps

    def weights(self, label: str) -> nn.Module:
        """The backbone to sample with: an EMA by its label, or `student`."""
        module = self.student.backbone if label == "student" else self.averages[label].module
        if isinstance(self.root, FSDPModule):  # ranks sample different numbers of images: each needs all weights
            return self.gathered(module)
        return module

    def gathered(self, module: nn.Module) -> nn.Module:
        """A backbone of whole weights, from one of which each rank holds a part. All ranks have to ask."""
        with default_dtype(DTYPES[self.recipe.train.precision]):
            made = build_backbone(self.recipe, device="cpu")
        made.load_state_dict({name: whole(tensor).cpu() for name, tensor in module.state_dict().items()})
        return made.to(self.device).eval().requires_grad_(False)


def build_session(
    recipe: Recipe, device: torch.device, *, resumed: bool = False, world: World | None = None
) -> Session:
    """A run before its first step, alone or as one process of a world.

    With `resumed` it is about to be restored from a checkpoint: the weights of `[start]` are then neither read nor needed.
    """
    world = world or World()
    dtype = DTYPES[recipe.train.precision]
    with default_dtype(dtype):
        backbone = build_backbone(recipe, device="cpu")
        notes = [] if recipe.start is None or resumed else begin_from(recipe.start, backbone)
        schedule: NoiseSchedule = recipe.noise_schedule.build()
        terms = build_terms(recipe)
    precision = torch.bfloat16 if recipe.train.precision == "bf16" else None
    offered = {label: chosen.component.qualified for label, chosen in recipe.terms.items()}
    student = Student(backbone, terms, schedule, precision, offered).to(device)
    teacher = build_teacher(recipe, student)
    averages = {label: WeightAverage(settings, student.backbone) for label, settings in recipe.ema.items()}
    speed_up(cast(Backbone, backbone), recipe.train)
    copies = [average.module for average in averages.values()]
    if teacher is not None:
        copies += [teacher.backbone, *(module for modules in teacher.modules.values() for module in modules.values())]
    root = parallel(student, copies, world, recipe.train.distributed)
    grid = recipe.backbone.params.grid(recipe.shapes)
    return Session(
        recipe=recipe,
        device=device,
        dataset=recipe.dataset.build(split="train"),
        schedule=schedule,
        pair_sampler=recipe.pair_sampler.build(grid=grid),
        objective=Objective(recipe),
        student=student,
        teacher=teacher,
        averages=averages,
        optimizer=recipe.optimizer.build()(parameter_groups(recipe, student), device),
        world=world,
        root=root,
        notes=notes,
    )


def build_teacher(recipe: Recipe, student: Student) -> Teacher | None:
    """The teacher, if a term that counts reads one, without what none of them reads."""
    wants = [needs.teacher for chosen in recipe.terms.values() if (needs := chosen.params.needs()).teacher is not None]
    if not wants:
        return None
    want = reduce(or_, wants)
    return Teacher(student.backbone, dict(student.terms.items()), None if want.output else want.taps)


def speed_up(backbone: Backbone, settings: TrainSettings) -> None:
    """Trade memory for time, or a slow start for fast steps, as the recipe says. The copies made before stay as they are."""
    backbone.set_checkpointing(settings.activation_checkpointing)
    if settings.compile:
        functorch_config.donated_buffer = False  # the gradient ratio goes backward twice through one forward
        for block in backbone.blocks:
            block.compile()


def build_backbone(recipe: Recipe, *, device: torch.device | str) -> nn.Module:
    """The network F with its initial weights, each a function of the seed and its own name alone."""
    shapes = recipe.shapes
    with seeded(recipe.seed, "init/backbone"):
        backbone: nn.Module = recipe.backbone.build(
            image=shapes.image,
            num_classes=shapes.num_classes,
            outputs=shapes.outputs,
            attention=recipe.attention.build(),
        )
    initialise(backbone, recipe.seed, "init")
    return backbone.to(device)


def build_terms(recipe: Recipe) -> dict[str, nn.Module]:
    """The loss terms that count, with their heads."""
    backbone = recipe.backbone.params
    terms: dict[str, nn.Module] = {}
    for label, chosen in recipe.terms.items():
        needs = chosen.params.needs()
        taps = {*needs.student.taps, *(needs.teacher.taps if needs.teacher else ())}
        with seeded(recipe.seed, f"init/loss/{label}"):
            terms[label] = chosen.build(
                widths={tap: backbone.width(tap) for tap in taps},
                grid=backbone.grid(recipe.shapes),
                image=recipe.shapes.image,
                num_classes=recipe.shapes.num_classes,
            )
        initialise(terms[label], recipe.seed, f"init/loss/{label}")
    return terms


def initialise(module: nn.Module, seed: int, purpose: str) -> None:
    """Give each parameter its own random stream, so that a head more or less never shifts another's initial weights."""
    rule: Callable[[str, Tensor, torch.Generator], None] | None = getattr(module, "init_parameter", None)
    if rule is None:
        return
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            rule(name, parameter, generator(seed, f"{purpose}/{name}"))


def parameter_groups(recipe: Recipe, student: Student) -> list[dict[str, Any]]:
    """The backbone, and the terms' own heads at their own rate."""
    groups = [{"params": list(student.backbone.parameters()), "lr_scale": 1.0, "head": False}]
    if heads := list(student.terms.parameters()):
        groups.append({"params": heads, "lr_scale": recipe.optimizer.params.head_lr, "head": True})
    return groups


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build modules in `dtype`, tables and constants included."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """The global generator keyed for a constructor that draws from it, and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, purpose).initial_seed())
        yield


# --------------------------------------------------------------------------------------------------------------------
# Saving and restoring
# --------------------------------------------------------------------------------------------------------------------


def files_of(session: Session, extra: Mapping[str, Any], *, copy: bool = False) -> dict[str, Content]:
    """The files of a checkpoint. No random state: every draw is keyed.

    Tensors are packed when a file is written: until then the session must stand still, unless `copy` takes copies of them
    to the CPU's memory first. Writing raises SD-N502 for one that is not finite.
    """
    optimizer, _ = split_optimizer(session.optimizer)
    tensors: dict[str, Mapping[str, Tensor]] = {"model": session.student.state_dict(), "optimizer": optimizer}
    if session.averages:
        tensors["ema"] = {
            f"{label}.{k}": v for label, ema in session.averages.items() for k, v in ema.module.state_dict().items()
        }
    if session.teacher:
        tensors["teacher"] = session.teacher.tensors()
    if isinstance(session.root, FSDPModule):
        # In the order of names: all ranks have to ask for the same part, and a restored state has no order.
        tensors = {name: {k: whole(group[k]).cpu() for k in sorted(group)} for name, group in tensors.items()}
    if copy:
        tensors = {
            name: {k: v.detach().to("cpu", copy=True) for k, v in group.items()} for name, group in tensors.items()
        }
    files: dict[str, Content] = {
        f"{name}.safetensors": Late(sum(v.nbytes for v in group.values()), partial(packed, name, group))
        for name, group in tensors.items()
    }
    files["state.json"] = json.dumps(numbers_in(session) | dict(extra), allow_nan=False, indent=1).encode()
    return files


def numbers_in(session: Session) -> dict[str, Any]:
    """All that is no tensor, as `state.json` holds it."""
    _, numbers = split_optimizer(session.optimizer)
    state = session.optimizer.state_dict()["state"]
    return {
        "step": session.step,
        "images": session.step * session.recipe.train.batch,
        "seed": session.recipe.seed,
        "seconds": session.seconds,
        "threads": torch.get_num_threads(),
        "tally": {name: [number.hex() for number in pair.tolist()] for name, pair in session.tally.items()},
        "optimizer": numbers,
        "optimized": {str(index): sorted(entries) for index, entries in sorted(state.items())},
        "counted": counted_by(session.optimizer, session.built_with),
        "skipped": session.skipped,
        "log_cursor": 0,
    }


def packed(name: str, tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a file of tensors. SD-N502 where one is not finite: such a state is never saved."""
    if bad := safetensors_bridge.non_finite(tensors):
        raise error(
            "SD-N502",
            f"non-finite values in {name}:{bad}; nothing of it is saved",
            where=name,
            got="a NaN or an infinity in what was to be saved",
            fix="lower optimizer.lr, then run again: it continues from the newest checkpoint",
        )
    return safetensors_bridge.pack(tensors)


def restore(session: Session, checkpoint: Checkpoint) -> dict[str, Any]:
    """Put a session where the checkpoint was taken; returns its state.json. A missing item is refused, never rebuilt."""
    state = checkpoint.state
    if "imported" in state:
        raise error(
            "SD-C448",
            "imported weights cannot be trained on where they lie: they have no optimizer and no log",
            where=str(checkpoint.folder),
            fix=f'a recipe with [start] run = "{checkpoint.folder.parents[1]}"',
        )

    def read(name: str) -> dict[str, Tensor]:
        where = f"{checkpoint.folder.name}/{name}"
        tensors = safetensors_bridge.unpack(checkpoint.read(name), where)
        safetensors_bridge.require_finite(tensors, where)
        return tensors

    try:
        for name in numbers_in(session).keys() - state.keys():
            raise KeyError(f"state.json: {name} is missing")
        load(session.student, read("model.safetensors"))
        join_optimizer(session.optimizer, read("optimizer.safetensors"), state["optimizer"], state["optimized"])
        restore_counts(session.optimizer, state["counted"])
        averages = read("ema.safetensors") if session.averages else {}
        for label, average in session.averages.items():
            load(average.module, under(f"{label}.", averages))
        if session.teacher:
            session.teacher.restore(parts_like(session.teacher.tensors(), read("teacher.safetensors")))
        session.step = int(state["step"])
        session.seconds = float(state["seconds"])
        session.skipped = list(state["skipped"])
        session.tally = {
            name: torch.tensor([float.fromhex(number) for number in pair], dtype=torch.float64, device=session.device)
            for name, pair in state["tally"].items()
        }
    except (KeyError, RuntimeError, FileNotFoundError, TypeError, ValueError, AttributeError) as mismatch:
        first = next(iter(str(mismatch).splitlines()), type(mismatch).__name__)
        raise error(
            "SD-C410",
            "the checkpoint does not fit this recipe",
            where=str(checkpoint.folder),
            got=first,
            expect="a checkpoint of the same recipe",
            fix="start afresh with --fresh, or use the recipe it was made with",
        ) from mismatch
    return state


def load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Strictly load whole tensors, also where this rank holds a part of each."""
    module.load_state_dict(parts_like(module.state_dict(), tensors))


def split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and as plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, numbers


def numbers_of(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """The plain numbers in each group: settings, and for some optimizers what they count there rather than per weight."""
    return [
        {key: value for key, value in group.items() if type(value) in (int, float)} for group in optimizer.param_groups
    ]


def counted_by(optimizer: torch.optim.Optimizer, built_with: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The numbers of each group that are not as they were built: counts, not settings, which come from the recipe."""
    return [
        {key: value for key, value in now.items() if built.get(key) != value}
        for now, built in zip(numbers_of(optimizer), built_with, strict=True)
    ]


def restore_counts(optimizer: torch.optim.Optimizer, counted: Sequence[Mapping[str, float]]) -> None:
    """Give the groups back what they counted."""
    for group, counts in zip(optimizer.param_groups, counted, strict=True):
        group.update(counts)


def join_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Mapping[str, Any]],
    optimized: Mapping[str, Sequence[str]],
) -> None:
    """The inverse of `split_optimizer`. Settings come from the recipe, so only the state is restored.

    `optimized` are the parameters that have a state, which are all but those that were never given a gradient, and the names
    of what it holds for each. KeyError for one that is missing.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in numbers.items()}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = part_like(parameters[int(index)], value)
    for wanted, names in optimized.items():
        held = state.get(int(wanted))
        if held is None or not held.keys() >= set(names):
            raise KeyError(f"optimizer state of parameter {wanted} is missing")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
