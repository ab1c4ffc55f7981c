"""The tables of a recipe that belong to the core rather than to a component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sddit.interfaces import Params
from sddit.interfaces.params import PLACE
from sddit.value_schedules import Value, bounded

FREE: dict[str, Any] = {"free": True}
"""Marks a key that changes no number: it is not part of the run id and may change on resume."""

LATER: dict[str, Any] = {"omit_default": True}
"""Marks a key of a later version, whose default is not part of the run id."""

MAX_SIGMA_REL = 12**-0.5
"""Relative width of the plain mean of all steps, the widest average."""

Precision = Literal["fp32", "bf16", "fp64"]

FP16 = "use train.precision = bf16: fp16 is not offered, since its range is too small without loss scaling"
PRECISION_HINTS: Any = {
    **dict.fromkeys(("fp16", "float16", "half", "16", "16-mixed", "amp", "mixed"), FP16),
    **dict.fromkeys(("bfloat16", "bf16-mixed", "bf16-true"), "write bf16"),
    **dict.fromkeys(("float32", "float", "single", "32", "tf32"), "write fp32"),
    **dict.fromkeys(("float64", "double", "64"), "write fp64"),
    **dict.fromkeys(("fp8", "float8", "int8"), "use train.precision = bf16, the shortest type offered"),
}
"""What to write instead of the names that other programs have for a precision."""


class TrainSettings(Params):
    """`[train]`: length, batch, precision and saving."""

    steps: int = Field(1000, ge=1, le=10**9, description="Optimizer steps of the run.")
    batch: int = Field(128, ge=1, le=10**6, description="Images of one optimizer step, over all processes.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Images of one forward pass, over all processes; gradients accumulate to one batch. Default: the "
        "batch.",
    )
    precision: Precision = Field(
        "fp32",
        description="fp32; bf16 (networks under autocast, losses in fp32); fp64.",
        json_schema_extra={"hints": PRECISION_HINTS},
    )
    deterministic: bool | None = Field(
        None, description="Same bits on every run of one machine type. Default: true on a CPU, false on CUDA."
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute each block in the backward pass instead of keeping its activations."
    )
    skip_non_finite: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Steps that may be skipped, in all, because a loss or a gradient was NaN or infinite; at the next "
        "one the run stops. Nothing learns from a skipped step, and metrics.jsonl counts them.",
        json_schema_extra=FREE,
    )
    distributed: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="How several processes share the weights: ddp, each has all of them; fsdp, each a part, for models "
        "that one device does not hold. The numbers are the same up to rounding.",
        json_schema_extra=FREE,
    )
    timeout: float = Field(
        20.0,
        gt=0,
        le=86_400,
        description="With several processes: seconds that one waits for another within a step before the run ends "
        "with SD-X802.",
        json_schema_extra=FREE,
    )
    compile: bool = Field(False, description="torch.compile each block: worthwhile for runs of many minutes.")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; recorded and reused on resume.", json_schema_extra=FREE
    )
    save_every: int = Field(500, ge=1, description="Steps between checkpoints.", json_schema_extra=FREE)
    save_async: bool = Field(
        False,
        description="Write checkpoints in the background from a CPU copy. Useful when saving takes longer than a few "
        "steps. A failed save stops the run at its next step.",
        json_schema_extra=FREE,
    )
    keep: int = Field(2, ge=1, description="Verified checkpoints to keep.", json_schema_extra=FREE)
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.", json_schema_extra=FREE)


class TeacherSettings(Params):
    """`[teacher]`: the EMA of the student that losses such as discrimination compare with."""

    momentum: Annotated[Value, bounded(0, 1)] = Field(
        default={"start": 0.996, "end": 1.0, "shape": "cosine"},
        validate_default=True,
        description="Fraction of the teacher kept at each step: a value schedule. Default: that of BYOL, DINO and "
        "iBOT.",
    )


class EmaSettings(Params):
    """`[ema.LABEL]`: an EMA of the student for sampling. Separate from the teacher."""

    decay: float = Field(0.9999, ge=0, lt=1, description="Fraction of the EMA kept at each step.")
    ramp: bool = Field(False, description="Use min(decay, (1 + step) / (10 + step)): for short runs.")
    profile: Literal["exponential", "power"] = Field(
        "exponential",
        description="Weight of earlier steps. exponential: of decay and ramp; power: of sigma_rel, in proportion to "
        "the length of the run (arXiv:2312.02696).",
        json_schema_extra=LATER,
    )
    sigma_rel: float | None = Field(
        None,
        gt=0,
        lt=MAX_SIGMA_REL,
        description="Relative width of the power profile: its standard deviation over the steps so far. Published: two "
        "EMAs of 0.05 and 0.1.",
        json_schema_extra=LATER,
    )
    snapshot_every: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Steps between snapshots of an EMA of profile power, from which `sddit-run ema` makes EMAs of "
        "other widths; 0: none.",
        json_schema_extra=FREE,
    )
    snapshot_dtype: Literal["fp32", "fp16"] = Field(
        "fp32",
        description="Precision of the snapshots. Published: fp16. The default is our choice: narrow EMAs subtract "
        "snapshots from each other, which multiplies the rounding of fp16.",
        json_schema_extra=FREE,
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.profile == "power" and self.sigma_rel is None:
            raise ValueError('sigma_rel: profile "power" needs it, such as 0.05')
        if self.profile == "exponential" and self.sigma_rel is not None:
            raise ValueError('sigma_rel: no effect with profile "exponential"; write profile = "power"')
        if self.profile == "exponential" and self.snapshot_every:
            raise ValueError('snapshot_every: only EMAs of profile "power" have snapshots')
        return self

    def has_snapshot(self, step: int, total: int) -> bool:
        """Return whether there is a snapshot after `step` steps: every `snapshot_every`, and after the last one."""
        return self.snapshot_every > 0 and (step % self.snapshot_every == 0 or step == total)

    def num_snapshots(self, total: int) -> int:
        """Return the number of snapshots of a run."""
        return -(-total // self.snapshot_every) if self.snapshot_every else 0


class OtherRunSettings(Params):
    """The weights of another run, which a recipe names."""

    run: str = Field(
        min_length=1,
        description="The run folder, or a folder made by `sddit-run export`, relative to the recipe. Its weights, not "
        "its path, determine the run id.",
        json_schema_extra=PLACE,
    )
    weights: str = Field(
        "", description="The label of an [ema] of that run, or `student`. Empty: the one that run samples with."
    )
    step: int | None = Field(
        None, ge=0, description="Step of the checkpoint of that run. Default: the newest.", json_schema_extra=FREE
    )
    sha256: str = Field(
        "", pattern="^([0-9a-f]{64})?$", description="Hash that the weight file must have; filled in if not set."
    )


class StartSettings(OtherRunSettings):
    """`[start]`: start from the weights of another run, with a new optimizer."""

    partial: bool = Field(
        False,
        description="Also start if the networks differ: tensors that are missing or have another shape are "
        "initialized, and tensors that this network does not have are ignored.",
    )


class SnapshotSettings(OtherRunSettings):
    """`[snapshot]`: the teacher is the network of another run, which stays as it is, instead of an EMA."""


class EvaluateSettings(Params):
    """`[evaluate]`: previews while training, and the scores at the end."""

    samples: int = Field(1000, ge=2, le=10**6, description="Images generated at the end: for the scores, and kept.")
    labels: Literal["balanced", "random"] = Field(
        "balanced", description="balanced: class after class in turn; random: drawn for each image from the seed."
    )
    features: tuple[str, ...] = Field(
        (), strict=False, description="Feature extractors of the scores; none: no scores, only images."
    )
    weights: str = Field(
        "", description="Weights to sample: the label of an [ema], or `student`. Empty: the first [ema], else student."
    )
    batch: int = Field(256, ge=1, description="Images sampled at once.", json_schema_extra=FREE)
    during: int = Field(
        0,
        ge=0,
        le=1000,
        description="Scores while training: at how many evenly spaced points before the end. Each uses as many "
        "images as the final scores.",
    )
    previews: int = Field(6, ge=0, le=1000, description="Sample grids over the run, the last one included.")
    per_class: int = Field(8, ge=1, le=64, description="Images of each class in a grid.")
    probe: bool = Field(
        False,
        description="At the end, predict the class from the tokens of every block: writes probe.json and charts, as "
        "`evaluate --probe`. Needs forward passes over both splits, trained and untrained, at four noise levels.",
        json_schema_extra=FREE,
    )
    neighbours: int = Field(3, ge=1, le=100, description="k of precision and recall.")
    kid_subsets: int = Field(50, ge=1, le=1000, description="Subsets of the kernel distance.")
    kid_subset_size: int = Field(200, ge=2, description="Images of one such subset.")


class AboutSettings(Params):
    """`[about]`: what the recipe reproduces. It changes nothing, and recipes that extend this one do not inherit it."""

    method: str = Field("", description="Name of the method, as its paper writes it.", json_schema_extra=FREE)
    paper: str = Field("", description="Its source, such as arXiv:2212.09748.", json_schema_extra=FREE)
    published: str = Field("", description="Which published setting the recipe follows.", json_schema_extra=FREE)
    ours: str = Field("", description="Where the recipe deviates, and what is our choice.", json_schema_extra=FREE)


SETTINGS: Mapping[str, type[Params]] = {
    "train": TrainSettings,
    "teacher": TeacherSettings,
    "ema": EmaSettings,
    "evaluate": EvaluateSettings,
    "start": StartSettings,
    "snapshot": SnapshotSettings,
    "about": AboutSettings,
}
