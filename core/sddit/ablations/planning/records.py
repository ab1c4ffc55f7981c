"""Read and write `plan.json` as typed records. No torch.

The fields of a record are the keys of the file, in the order in which they are written. Those with a default are
missing in the files of earlier versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, TypeAdapter, ValidationError

from sddit.ablations.planning.ablation_settings import BudgetRule
from sddit.interfaces import Monitor
from sddit.interfaces.metric_names import KNOWN_METRICS
from sddit.recipes.differences import by_leaf
from sddit.storage.run_folder import read_json, unreadable_error

PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class LeakCheck:
    """Result of the leak test of one arm."""

    found: tuple[str, ...] = ()  # where the target is visible
    unchecked: str = ""  # why the test was not run; empty if it was


class SettingDifference(NamedTuple):
    """One setting in which an arm differs from its baseline. None: not set."""

    key: str
    baseline: Any
    arm: Any


def by_setting(found: Iterable[tuple[str, Any, Any]]) -> tuple[SettingDifference, ...]:
    """Return the differences with tables split into their settings; earlier versions wrote tables."""
    return tuple(SettingDifference(*one) for one in by_leaf(found))


@dataclass(frozen=True, slots=True)
class BudgetRecord:
    """Budget that every arm gets. `amount` is None before a budget of time has been measured."""

    rule: BudgetRule
    amount: float | None  # images, FLOPs or seconds of training
    seconds_per_step: Mapping[str, float]  # by run id of the arm's recipe before it is cut to the budget


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRecord:
    """One arm of the plan. Costs are by formula; None where a component does not state its cost."""

    label: str
    changes: Mapping[str, Any]  # dotted key -> value
    baseline: str  # label of the arm it is compared with
    named: str = ""  # arm of [ablation.arms] whose grid point this is; empty if there is none
    steps: int
    batch: int
    images: int
    flops: float | None  # of one training run
    flops_per_step: float | None  # mean over the run
    flops_course: tuple[float | None, ...] = ()  # FLOPs per step in equal parts of the run; empty: flops_per_step
    sampling_flops_per_image: float | None
    parameters: int | None  # trained: backbone and heads
    sampled_parameters: int | None  # used in sampling: the backbone
    memory: int | float | None  # bytes
    not_stated: tuple[str, ...]
    idle: tuple[str, ...]
    warnings: tuple[str, ...]
    leaks: LeakCheck | None = None  # None: not tested yet
    monitors: Mapping[str, tuple[Monitor, ...]]  # by label of the loss
    shared_clip: bool = False  # whether the gradients of the losses' heads take part in the clipping of the network's
    differs: Annotated[tuple[SettingDifference, ...], AfterValidator(by_setting)] = ()

    @property
    def is_baseline(self) -> bool:
        return self.label == self.baseline

    def flops_until(self, step: float) -> float | None:
        """Return the training FLOPs of one run up to a step; None if a component does not state its cost.

        The cost of a step changes where a ramp hides tokens or a loss ends, so it is summed over equal parts of the
        run.
        """
        if self.flops is None or step >= self.steps:
            return self.flops
        course = [flops or 0.0 for flops in self.flops_course or (self.flops_per_step,)]
        length = self.steps / len(course)  # steps of a part
        full = min(int(step / length), len(course) - 1)  # rounding may reach the end before the step does
        return sum(course[:full]) * length + (step - full * length) * course[full]

    def differing(self, *prefixes: str) -> list[str]:
        """Return the keys that differ from the baseline's recipe and begin with one of the prefixes."""
        return [one.key for one in self.differs if one.key.startswith(prefixes)]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of the plan."""

    arm: str
    seed: int
    id: str
    folder: str  # relative to the folder of the plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """Content of `plan.json`."""

    name: str
    id: str
    command: str
    question: str
    tuning: str
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    targets: Mapping[str, float] = field(default_factory=dict)  # by metric
    budget: BudgetRecord
    threads: int | None = None  # CPU threads of each run, where the recipe leaves them open
    published: str = ""  # folder of published results to compare with, relative to the folder of the plan
    data: str = ""
    undecoded: bool = False  # whether the samples are latents without a decoder, which have no scores
    arms: tuple[ArmRecord, ...]
    runs: tuple[RunRecord, ...] | None = None  # None in a publication, which has no run folders

    def arm(self, label: str) -> ArmRecord:
        """Return the arm of a label. Raises KeyError if there is none."""
        return self.by_label[label]

    @property
    def by_label(self) -> dict[str, ArmRecord]:
        return {arm.label: arm for arm in self.arms}

    @property
    def labels(self) -> list[str]:
        return [arm.label for arm in self.arms]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `plan.json`; a publication has no `runs` and `threads`, which depend on the machine."""
        written = asdict(self)
        if self.runs is None:
            del written["runs"], written["threads"]
        if not self.undecoded:
            del written["undecoded"]
        return written

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read a plan; unknown keys are ignored. Raises ValidationError if a value is missing or of the wrong kind."""
        return TypeAdapter(cls).validate_python(content)


def read_plan(folder: Path) -> PlanRecord:
    """Read the plan of an ablation's folder or a published one. Raises SD-F704 if it is damaged."""
    path = folder / PLAN
    fix = "restore it from a backup, or delete it and rerun the command that writes it"
    content = read_json(path, fix=fix)
    try:
        plan = PlanRecord.from_json(content)
    except ValidationError as fault:
        raise unreadable_error(path, first_problem(fault), fix) from fault
    if contradiction := next(contradictions(plan), ""):
        raise unreadable_error(path, contradiction, fix)
    return plan


def first_problem(fault: ValidationError) -> str:
    """Return the first key that is wrong, and why."""
    first = fault.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


def contradictions(plan: PlanRecord) -> Iterator[str]:
    """Yield what a plan names but does not have."""
    labels = plan.labels
    if not labels or len(set(labels)) < len(labels):
        yield "arms: none, or two of one label"
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        yield "seeds: none, or one twice"
    for number, arm in enumerate(plan.arms):
        if min(arm.steps, arm.batch, arm.images) < 0:
            yield f"arms.{number}: a negative number of steps or images"
        if arm.baseline not in labels:
            yield f"arms.{number}.baseline: {arm.baseline!r} is not an arm"
    for number, run in enumerate(plan.runs or ()):
        if run.arm not in labels:
            yield f"runs.{number}.arm: {run.arm!r} is not an arm"
    for metric in plan.metrics:
        if metric.rpartition(".")[2] not in KNOWN_METRICS:
            yield f"metrics: {metric!r} is unknown"
