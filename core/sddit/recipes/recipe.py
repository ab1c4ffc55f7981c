"""A resolved recipe: every slot filled, every value known, with its origin."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from sddit import interfaces as face
from sddit.interfaces import Selected
from sddit.interfaces.params import LossView, settings_json
from sddit.recipes.settings import (
    AboutSettings,
    EmaSettings,
    EvaluateSettings,
    SnapshotSettings,
    StartSettings,
    TeacherSettings,
    TrainSettings,
)
from sddit.value_schedules import is_zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that defines a run. Equal recipes have one id and one run folder."""

    name: str  # file stem
    path: Path | None
    seed: int
    plugins: tuple[str, ...]  # as `plugins` names them; a one-file plugin as "./file.py"
    backbone: Selected[face.BackboneParams]
    noise_schedule: Selected[face.NoiseScheduleParams]
    pair_sampler: Selected[face.PairSamplerParams]
    losses: Mapping[str, Selected[face.LossParams]]  # by label, including those of constant weight 0
    attention: Selected[face.AttentionParams]
    dataset: Selected[face.DatasetParams]
    sampler: Selected[face.SamplerParams]
    guidance: Selected[face.GuidanceParams]
    optimizer: Selected[face.OptimizerParams]
    trackers: Mapping[str, Selected[face.TrackerParams]]
    features: Mapping[str, Selected[face.FeatureParams]]
    train: TrainSettings
    teacher: TeacherSettings
    ema: Mapping[str, EmaSettings]
    evaluate: EvaluateSettings
    facts: face.DataFacts
    declared: str = ""  # of a plan: which facts it has from the recipe, because the data do not exist; empty: none
    codec: Selected[face.CodecParams] | None = None  # that decodes samples of latents; None: none
    start: StartSettings | None = None  # the weights to start from; None: new ones
    snapshot: SnapshotSettings | None = None  # the weights of a teacher that is not updated; None: an EMA
    origins: Mapping[str, str] = field(default_factory=dict)  # dotted key -> where its value came from
    about: AboutSettings = field(default_factory=AboutSettings)
    idle: tuple[str, ...] = ()  # keys that are set and have no effect here
    warnings: tuple[str, ...] = ()  # what is allowed but probably a mistake
    plugin_digests: Mapping[str, str] = field(default_factory=dict)  # plugin -> version or file hash
    plugin_files: Mapping[str, Path] = field(default_factory=dict)  # "./file.py" -> path of that plugin
    processes: int = 1  # that train it; part of its identity if a loss compares the samples of one process only
    kernels: Mapping[str, face.AttentionParams] = field(default_factory=dict)  # that are installed, with their defaults

    @property
    def shapes(self) -> face.Shapes:
        """Input and output shapes of the backbone."""
        return face.Shapes(self.facts.image, self.facts.num_classes, self.noise_schedule.params.outputs)

    @property
    def active_losses(self) -> dict[str, Selected[face.LossParams]]:
        """The losses that are built: those whose weight is not 0 for the entire run."""
        return {label: chosen for label, chosen in self.losses.items() if not is_zero(chosen.params.weight)}

    def views_of(self, loss: LossView) -> list[face.ViewSpec]:
        """Return the views that `loss` reads and has a use for."""
        needs = loss.needs()
        specs = [v for v in self.pair_sampler.params.views() if not loss.views or v.name in loss.views]
        return [v for v in specs if v.network == "student" or needs.teacher is not None]

    def key_of(self, loss: LossView) -> str:
        """Return the key of `loss`, such as `loss.denoise`."""
        return next(f"loss.{label}" for label, chosen in self.losses.items() if chosen.params is loss)

    def trains_head(self, loss: face.LossParams) -> bool:
        """Return whether `loss` trains modules of its own; one that states no cost may."""
        backbone, shapes = self.backbone.params, self.shapes
        tokens = math.prod(backbone.grid(shapes))
        costs = (loss.cost(backbone, shapes, view, tokens) for view in self.views_of(loss))
        return any(cost is None or cost.parameters > 0 for cost in costs)

    def has_heads(self) -> bool:
        """Return whether an active loss trains modules of its own."""
        return any(self.trains_head(chosen.params) for chosen in self.active_losses.values())

    def has_shared_clip(self) -> bool:
        """Return whether the gradients of the losses' heads take part in the norm by which the network's is clipped."""
        optimizer = self.optimizer.params
        return optimizer.clip is not None and optimizer.clip_scope == "all" and self.has_heads()

    def wants(self, labels: Iterable[str] | None = None) -> dict[str, face.Want]:
        """Return what is read from each view, by all active losses or by those in `labels`, in their order."""
        wants: dict[str, face.Want] = {}
        for label in self.active_losses if labels is None else labels:
            loss = self.active_losses[label].params
            needs = loss.needs()
            for view in self.views_of(loss):
                want = needs.student if view.network == "student" else needs.teacher or face.Want()
                wants[view.name] = wants.get(view.name, face.Want()) | want
        return wants

    def has_table(self, feature: str) -> bool:
        """Return whether an extractor is set in a table `[features.LABEL]`, rather than named by `[evaluate]` alone."""
        return feature in self.evaluate.features and "/" not in feature

    def to_json(self, *, free: bool = True) -> dict[str, Any]:
        """Return the content of `recipe.resolved.json`, which `resolve` reads again; one-file plugins are next to it.

        Without `free`, only what determines the numbers: the part that the run id hashes. It lacks keys marked
        `omit_default` that have their default.
        """
        tables: dict[str, Any] = {
            "seed": self.seed,
            "plugins": list(self.plugins),
            "backbone": self.backbone.to_json(free=free),
            "noise_schedule": self.noise_schedule.to_json(free=free),
            "pair_sampler": self.pair_sampler.to_json(free=free),
            "loss": {label: chosen.to_json(free=free) for label, chosen in self.losses.items()},
            "attention": self.attention.to_json(free=free),
            "dataset": self.dataset.to_json(free=free),
            "sampler": self.sampler.to_json(free=free),
            "guidance": self.guidance.to_json(free=free),
            "optimizer": self.optimizer.to_json(free=free),
            "teacher": settings_json(self.teacher, free=free),
            "ema": {label: settings_json(settings, free=free) for label, settings in self.ema.items()},
            "train": settings_json(self.train, free=free),
            "evaluate": settings_json(self.evaluate, free=free),
        }
        extractors = {label: one for label, one in self.features.items() if self.has_table(label)}
        if extractors:
            tables["features"] = {
                label: {key: value for key, value in table.items() if free or f"{key}_sha256" not in table}
                for label, one in extractors.items()
                for table in [one.to_json(free=free)]
            }  # of a path whose file hash is stored, the hash alone determines the numbers
        if any(chosen.params.per_process for chosen in self.active_losses.values()):
            tables["processes"] = self.processes
        if self.codec is not None:
            tables["codec"] = self.codec.to_json(free=free)
        if self.start is not None:
            tables["start"] = settings_json(self.start, free=free)
        if self.snapshot is not None:
            tables["snapshot"] = settings_json(self.snapshot, free=free)
        if free and self.about != AboutSettings():
            tables["about"] = settings_json(self.about)
        if free:
            tables["tracker"] = {label: chosen.to_json() for label, chosen in self.trackers.items()}
            tables["name"] = self.name
            tables["data"] = facts_to_json(self.facts)
            tables["code"] = dict(self.plugin_digests)
        return tables

    @property
    def run_id(self) -> str:
        """Hash of the resolved recipe, of the data and of the plugins used: a rerun finds its own folder."""
        identity = {**self.to_json(free=False), "data": self.facts.fingerprint, "code": dict(self.plugin_digests)}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return sha256(text.encode()).hexdigest()[:12]


def facts_to_json(facts: face.DataFacts) -> dict[str, Any]:
    """Return what is known of the data, so that a run can be sampled without the data."""
    known = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(facts).items()}
    return {"classes": facts.num_classes, **known}
