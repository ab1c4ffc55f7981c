"""Define settings of the toy components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from sddit import interfaces as face
from sddit.value_schedules import Value, bounded

SHADE = 0.7
"""Distance between the classes of the toy data set."""


class ToyBackboneParams(face.BackboneParams):
    """A few blocks that mix each token with the mean of the tokens it may see."""

    hidden: int = Field(16, ge=2, le=4096, description="D, the width of a token.")
    depth: int = Field(2, ge=1, le=64, description="Number of blocks.")
    patch: int = Field(4, ge=1, description="Side of a patch in pixels.")
    cls: bool = Field(True, description="Carry a class token.")
    supports_masking: ClassVar[bool] = True

    def grid(self, shapes: face.Shapes) -> tuple[int, int]:
        _, height, width = shapes.image
        return height // self.patch, width // self.patch

    def block_of(self, tap: face.Tap) -> int:
        """Return the number of blocks that run before `tap` is read."""
        if tap == "encoder":
            return self.depth
        if isinstance(tap, int) and 1 <= tap <= self.depth:
            return tap
        if isinstance(tap, float) and 0 < tap <= 1:
            return max(1, round(tap * self.depth))
        raise ValueError(f"no tap {tap!r}; there are 'encoder', a fraction of the depth, and blocks 1 to {self.depth}")

    def width(self, tap: face.Tap) -> int:
        self.block_of(tap)
        return self.hidden

    @property
    def has_cls(self) -> bool:
        return self.cls

    def cost(
        self, shapes: face.Shapes, *, num_kept: int, taps: Sequence[face.Tap] = (), output: bool = True
    ) -> face.Cost | None:
        tokens = math.prod(self.grid(shapes))
        patch, width = shapes.image[0] * self.patch**2, self.hidden
        depth = self.depth if output else max(map(self.block_of, taps), default=0)
        row = num_kept + self.cls
        head = output * shapes.outputs * patch
        inputs = (patch + tokens + shapes.num_classes + 4 + self.cls) * width
        blocks = depth * (4 * width + 5) * width
        block_flops = depth * row * (4 * width + row) * width
        flops = 2 * ((tokens * patch + 1) * width + block_flops + tokens * width * head)
        return face.Cost(inputs + blocks + (width + 1) * head, flops, depth * row * 4 * width)


class ToyScheduleParams(face.NoiseScheduleParams):
    """x = x0 + t eps, and a network that gives x0 itself."""

    t_min: float = Field(0.02, gt=0, description="Lowest noise level.")
    t_max: float = Field(20.0, gt=0, description="Highest noise level.")

    @property
    def t_range(self) -> tuple[float, float]:
        return self.t_min, self.t_max


class ToyPairsParams(face.PairSamplerParams):
    """One student view, and a teacher view of the same noise at a lower level if asked for."""

    mask_ratio: Annotated[Value, bounded(0, 0.9)] = Field(
        0.0, description="Fraction of tokens hidden from the student."
    )
    teacher: bool = Field(False, description="Make a teacher view at half the student's noise level.")

    def views(self) -> tuple[face.ViewSpec, ...]:
        student = face.ViewSpec("student", mask_ratio=self.mask_ratio)
        return (student, face.ViewSpec("teacher", "teacher")) if self.teacher else (student,)


class ToyLossParams(face.LossParams):
    """Squared error of the estimated clean image."""

    def needs(self) -> face.Needs:
        return face.Needs(face.Want(output=True))

    def cost(self, *_: Any, **__: Any) -> face.Cost:
        return face.Cost()


class ToyAgreementParams(face.LossParams):
    """Student tokens against the teacher's."""

    momentum: float = Field(0.9, ge=0, le=1, description="Fraction of the centre kept at each step.")

    def needs(self) -> face.Needs:
        return face.Needs(face.Want(taps=("encoder",)), face.Want(taps=("encoder",)))

    def cost(
        self, backbone: face.BackboneParams, shapes: face.Shapes, view: face.ViewSpec, num_kept: int
    ) -> face.Cost | None:
        width = backbone.width("encoder")
        return face.Cost((width + 1) * width, 2.0 * num_kept * width**2, num_kept * width)


class ToySamplerParams(face.SamplerParams):
    """Euler's method."""

    grid: str = Field("log", description="Spacing of the levels.")


class ToyGuidanceParams(face.GuidanceParams):
    """No guidance."""


class ToyAttentionParams(face.AttentionParams):
    """The softmax written out."""

    takes_bias: ClassVar[bool] = True
    takes_groups: ClassVar[bool] = True


class ToyOptimizerParams(face.OptimizerParams):
    """Adam with decoupled weight decay."""

    weight_decay: float = Field(0.0, ge=0, description="Decay of matrices; biases and norms do not decay.")
    state_per_parameter: ClassVar[int] = 2


class ToyDatasetParams(face.DatasetParams):
    """Images whose colour is their class, plus a fixed texture of their own."""

    size: int = Field(8, ge=4, le=256, description="Height and width.")
    channels: int = Field(1, ge=1, le=8, description="C.")
    classes: int = Field(3, ge=0, le=100, description="Number of classes; 0: unconditional.")
    images: int = Field(24, ge=1, le=10_000, description="Training images; the test split has a third of that.")

    def facts(self) -> face.DataFacts:
        return face.DataFacts(
            image=(self.channels, self.size, self.size),
            class_names=tuple(f"class {index}" for index in range(self.classes)),
            train_size=self.images,
            test_size=max(1, self.images // 3),
            fingerprint=f"toy-{self.size}-{self.channels}-{self.classes}-{self.images}",
            mean=(0.0,) * self.channels,
            std=(0.5,) * self.channels,
            source="made of formulas",
        )

    @property
    def texture(self) -> float:
        """Amplitude of a sine that makes the standard deviation of the images 0.5 for any number of classes."""
        shades = (1 - 1 / max(1, self.classes) ** 2) / 3  # variance of the classes' shades, evenly in (-1, 1)
        return math.sqrt(2 * (0.5**2 - SHADE**2 * shades))


class ToyCodecParams(face.CodecParams):
    """The mean colour of each square of pixels."""

    side: int = Field(2, ge=1, le=64, description="Height and width of a square.")

    def facts(self, data: face.DataFacts | None = None) -> face.CodecFacts:
        scale, shift = (1.0 if self.scale is None else self.scale), self.shift or 0.0
        return face.CodecFacts(channels=3, factor=self.side, scale=scale, shift=shift)


class ToyFeaturesParams(face.FeatureParams):
    """Mean and standard deviation of each channel."""

    dimensions: ClassVar[int] = 6


class ToyTrackerParams(face.TrackerParams):
    """Keeps the numbers in memory."""
