"""Plain records of everything in the report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sddit.evaluation.monitors import Row
from sddit.evaluation.probe import Probe
from sddit.interfaces import Monitor

if TYPE_CHECKING:
    from sddit.evaluation.scores import Scores


@dataclass(frozen=True, slots=True)
class NextStep:
    """A suggestion, and the command for it."""

    text: str
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """Cost of a run. None: not known."""

    seconds: float  # of training
    images_per_second: float | None = None
    parameters: int | None = None  # trained
    flops_per_step: float | None = None  # forward and backward, teacher and heads counted
    flops: float | None = None  # of the whole run
    peak_memory: float | None = None  # bytes
    device: str = ""


@dataclass(frozen=True, slots=True)
class ScoredAverage:
    """Weights averaged with a relative width, which `sddit-run ema` made, and their scores by extractor."""

    label: str
    sigma_rel: float
    step: int
    scores: Mapping[str, Scores]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that a report shows."""

    title: str
    summary: Mapping[str, str]  # of data, views and losses, a line each
    status: str  # "finished", "stopped at step 400 of 1000"
    command: str  # what repeats this run, such as "sddit-run recipes/quickstart.toml"
    cost: RunCost
    metrics: Sequence[Row]  # the lines of metrics.jsonl
    grid: bytes | None = None  # PNG of the final samples
    previews: Sequence[tuple[int, bytes]] = ()  # (step, PNG) over the run
    scores: Mapping[str, Scores] = field(default_factory=dict)
    no_scores: str = ""  # why there are none
    averages: Sequence[ScoredAverage] = ()  # by step, then by width
    caption: str = ""  # what the grids show instead of images
    probe: Probe | None = None
    monitors: Mapping[str, Sequence[Monitor]] = field(default_factory=dict)  # by the label of their loss
    noise_bins: Sequence[str] = ()  # names of the bins of "loss/<label>@<bin>", least noise first
    recipe: Mapping[str, Any] = field(default_factory=dict)  # resolved
    origins: Mapping[str, str] = field(default_factory=dict)  # dotted key -> where its value came from
    environment: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    next_steps: Sequence[NextStep] = ()
