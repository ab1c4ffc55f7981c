"""Settings of masked training: views, reconstruction, the MDT backbone and its optimizer. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sddit.errors import Problem
from sddit.interfaces import Cost, LossParams, Matrix, Needs, OptimizerParams, RecipeView, Shapes, Tap, ViewSpec, Want
from sddit.value_schedules import Value, bounded
from sddit_dit.cost import SINUSOID, adaptive_linear_cost, block_cost, linear, patch_embedding_cost
from sddit_dit.params import TransformerParams
from sddit_dit.view_params import MaskedViewParams, MaskRatio

VERSIONS: dict[str, dict[str, Any]] = {
    "v1": {"decoder_depth": 2, "long_skips": False, "input_skips": False},
    "v2": {"decoder_depth": 4, "long_skips": True, "input_skips": True},
}
"""Structure of the two published networks (arXiv:2303.14389, first and last version)."""


def table_rows(grid: tuple[int, int]) -> int:
    """Return the rows of a relative position table: one per offset, and three for an unused class token."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


class MDTParams(TransformerParams):
    """A masked diffusion transformer. All blocks have one width; the last `decoder_depth` of them see all tokens."""

    version: Literal["v1", "v2"] = Field(
        "v2", description="Defaults of the keys below: v1 has 2 decoder blocks and no skips, v2 has 4 and both skips."
    )
    decoder_depth: int | None = Field(
        None, ge=1, le=999, description="Number of decoder blocks, the last of the depth; default 4, in v1 2."
    )
    long_skips: bool | None = Field(
        None,
        description="Each block in the second half of the encoder also takes the output of its mirror block in the "
        "first; default true, in v1 false.",
    )
    input_skips: bool | None = Field(
        None,
        description="Each decoder block also takes the embedded noisy tokens, including hidden ones; default true, in "
        "v1 false.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_structure(cls, values: Any) -> Any:
        """Fill in the defaults of the version, so that a resolved recipe shows them."""
        if not isinstance(values, dict):
            return values
        version = VERSIONS.get(str(values.get("version", "v2")), {})
        return {**values, **{key: value for key, value in version.items() if values.get(key) is None}}

    @model_validator(mode="after")
    def _refuse_odd_encoders(self) -> Self:
        depth = self.named_size[0]
        if self.encoder_depth < 1:
            raise ValueError(f"decoder_depth {self.decoder_depth} leaves no encoder blocks in an MDT of depth {depth}")
        if self.long_skips and self.encoder_depth % 2:
            raise ValueError(
                f"long_skips: an encoder of {self.encoder_depth} blocks, {depth} - {self.decoder_depth}, cannot be "
                "halved; change decoder_depth by one"
            )
        return self

    @property
    def encoder_depth(self) -> int:
        assert self.decoder_depth is not None
        return self.named_size[0] - self.decoder_depth

    def takes_skip(self, number: int) -> bool:
        """Return whether block `number`, from 1, takes a skip in addition to its input tokens."""
        if number > self.encoder_depth:
            return bool(self.input_skips)
        return bool(self.long_skips) and number > self.encoder_depth // 2

    @property
    def needs_bias(self) -> bool:
        return True

    def cost(self, shapes: Shapes, *, num_kept: int, taps: Sequence[Tap] = (), output: bool = True) -> Cost:
        """Return the cost, as in `sddit_dit.cost`; with hidden tokens, each image also keeps its attention bias."""
        grid, blocks = self.grid(shapes), self.last_block(taps, output)
        tokens, (_, width, heads) = math.prod(grid), self.named_size
        total = Cost(parameters=(shapes.num_classes + 1 + tokens) * width)  # labels, positions
        total += patch_embedding_cost(tokens, shapes.image[0] * self.patch**2, self.patch_rank, width)
        total += linear(1, SINUSOID, width) + linear(1, width, width)
        for number in range(1, blocks + 1):
            n = num_kept if number <= self.encoder_depth else tokens
            total += self._block_cost(n, grid) + Cost(activations=heads * n * n if n < tokens else 0)
            if self.takes_skip(number):
                total += linear(n, 2 * width, width) + Cost(matrices=(Matrix(width, 2 * width),))
        if blocks > self.encoder_depth:
            total += Cost(parameters=(tokens + 1) * width)  # the decoder's positions, mask token
            total += self._block_cost(tokens, grid).times(1 if num_kept < tokens else 0)  # the interpolater
        if output:
            total += adaptive_linear_cost(tokens, width, self.patch**2 * shapes.outputs * shapes.image[0], width)
        return total

    def _block_cost(self, n: int, grid: tuple[int, int]) -> Cost:
        _, width, heads = self.named_size
        return block_cost(n, width, int(width * self.mlp_ratio), width) + Cost(parameters=table_rows(grid) * heads)


class MaskedParams(MaskedViewParams):
    """Settings of the `masked` pair sampler."""

    def views(self) -> tuple[ViewSpec, ...]:
        return (self.masked("student"),)


class MaskedAndFullParams(MaskedViewParams):
    """Settings of the `masked_and_full` pair sampler. MDTv2 uses `mask_spread` 0.2."""

    mask_ratio: MaskRatio = 0.3
    shared_noise: bool = Field(False, description="Use the same noise in both views, as other methods do.")
    label_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Probability that the masked view drops its label, independently of the full view; MDT: that of "
        "the data set. Default: both views have the same label.",
    )

    def views(self) -> tuple[ViewSpec, ...]:
        return ViewSpec("full"), self.masked("masked")

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        unlabelled = recipe.facts.num_classes == 0
        return (*super().idle(recipe), *(("label_drop",) if unlabelled else ()))


Beta = Annotated[float, Field(ge=0, lt=1)]


class AdanParams(OptimizerParams):
    """Settings of the `adan` optimizer. MDTv2 uses no weight decay."""

    betas: tuple[Beta, Beta, Beta] = Field(
        (0.98, 0.92, 0.99),
        strict=False,
        description="Decay rates of the averages of the gradient, of its difference between steps and of their square.",
    )
    eps: float = Field(1e-8, gt=0, description="Added to the square root of the last average.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay per step, times lr.")

    @property
    def state_per_parameter(self) -> int:
        return 4


class ReconstructionParams(LossParams):
    """Settings of the `reconstruction` loss."""

    weight: Annotated[Value, bounded(0)] = Field(
        0.1, description="Weight of this loss: a value schedule. Constant 0 disables it."
    )
    target: Literal["noised", "clean"] = Field(
        "noised", description="Target of the hidden tokens: the network's noisy input, or the clean image."
    )
    normalize: bool = Field(True, description="Normalize each patch of the target to mean 0 and variance 1.")

    def needs(self) -> Needs:
        return Needs(student=Want(output=True))

    def cost(self, *_: Any, **__: Any) -> Cost:
        """Return zero: no heads, and negligible arithmetic per pixel."""
        return Cost()

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Check that tokens are hidden, and that normalized patches have more than one value."""
        students = [view for view in recipe.views_of(self) if view.network == "student"]
        if not any(view.is_masked for view in students):
            yield Problem(
                "SD-R108",
                "no tokens are hidden, so there is nothing to reconstruct",
                where="pair_sampler",
                got=f"{recipe.pair_sampler.component.name!r} with a mask ratio of 0 for the entire run",
                expect="a student view with a mask ratio above 0",
                fix='pair_sampler.name = "masked", or pair_sampler.mask_ratio = 0.5, or remove the loss',
            )
        tokens = math.prod(recipe.backbone.params.grid(recipe.shapes))
        if self.normalize and math.prod(recipe.facts.image) == tokens:
            where = f"{recipe.key_of(self)}.normalize"
            yield Problem(
                "SD-R108",
                "a patch of one value cannot be normalized",
                where=where,
                got="true with one value per patch",
                expect="larger patches, or false",
                fix=f"{where} = false",
            )
