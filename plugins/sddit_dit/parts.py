"""Settings of the parts of a DiT: its decoder, and the route of hidden tokens. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from sddit.interfaces import Params

SEPARATE = {"width": 512, "heads": 16, "bridge": "shared", "bridge_init": "zero"}
"""Defaults of a separate decoder: those of MaskDiT (arXiv:2306.09305)."""


class DecoderParams(Params):
    """Settings of `[backbone.decoder]`, which turns encoder tokens into the output."""

    style: Literal["separate", "split"] = Field(
        "separate",
        description="separate: additional blocks of another width; split: the last `depth` blocks of the DiT itself.",
    )
    depth: int = Field(8, ge=1, le=1000, description="Number of decoder blocks.")
    width: int | None = Field(None, ge=4, le=65536, description="Token width; default 512. Only with style separate.")
    heads: int | None = Field(None, ge=1, le=1024, description="Attention heads; default 16. Only with style separate.")
    bridge: Literal["shared", "own"] | None = Field(
        None,
        description="Projection of noisy tokens at hidden positions to the decoder's width: the bridge of the "
        "encoder's tokens (shared, the default), or a second one (own). Only with style separate.",
    )
    bridge_init: Literal["zero", "xavier"] | None = Field(
        None,
        description="Initialization of the bridge's Linear; default zero, as in MaskDiT. Only with style separate.",
    )
    encoder_gradient: Literal["full", "none"] | Annotated[float, Field(gt=0)] = Field(
        "full",
        description="Gradient that the encoder gets from losses of the decoder's output: all of it (full), none, or a "
        "factor on it. Taps within the encoder are not affected, and the output does not change.",
        json_schema_extra={"omit_default": True, "training_only": True},
    )

    @model_validator(mode="before")
    @classmethod
    def _default_sizes(cls, values: Any) -> Any:
        """Fill in the defaults of a separate decoder, so that a resolved recipe shows them."""
        if not isinstance(values, dict) or values.get("style", "separate") != "separate":
            return values
        return {**values, **{key: value for key, value in SEPARATE.items() if values.get(key) is None}}

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.style == "split":
            if idle := [key for key in SEPARATE if getattr(self, key) is not None]:
                raise ValueError(
                    f'{", ".join(idle)}: no effect with style "split", which uses blocks of the DiT itself'
                )
        elif self.width is not None and self.heads is not None:
            refuse_bad_width("width", self.width, self.heads)
        return self


def _check_blocks_or_fraction(value: int | float) -> int | float:
    if isinstance(value, float) and not 0 <= value < 1:
        raise ValueError("a float is a fraction of the depth, 0.0 to below 1.0; write a number of blocks as an integer")
    if isinstance(value, int) and value < 0:
        raise ValueError("a number of blocks cannot be negative")
    return value


BlocksOrFraction = Annotated[int | float, AfterValidator(_check_blocks_or_fraction)]
"""How many blocks come before a point in the network: an int, or a float as the fraction of all blocks."""


class RouteParams(Params):
    """Settings of `[backbone.route]`: which blocks hidden tokens skip, and how they return.

    TREAD (arXiv:2501.04765) and SPRINT (arXiv:2510.21986) start to hide after the first blocks, SD-DiT before them.
    """

    model_config = ConfigDict(populate_by_name=True)

    from_: BlocksOrFraction = Field(
        0,
        alias="from",
        description="After how many blocks tokens are hidden: a number, or a fraction of all blocks. 0: before the "
        "first (SD-DiT); TREAD-B and SPRINT: 2.",
    )
    to: BlocksOrFraction | None = Field(
        None,
        description="After how many blocks all tokens return. With a decoder they return at its first block, and this "
        "key is refused. TREAD-B: 8 of 12; SPRINT: 2 less than the depth.",
    )
    fill: Literal["carried", "fused"] | None = Field(
        None,
        description="What hidden tokens return as. carried: their values before the skipped blocks (TREAD, the "
        "default). fused: every token becomes a Linear of its value before those blocks and of their output, with a "
        "learned vector in place of the output where it was hidden (SPRINT). Only without a decoder, whose key is "
        "`backbone.fill`.",
    )


def refuse_bad_width(name: str, width: int, heads: int) -> None:
    """Raise ValueError for a width that the heads, or the embedding of positions, cannot divide."""
    if width % heads:
        raise ValueError(f"{name} {width} is not divisible by {heads} heads")
    if width % 4:
        raise ValueError(
            f"{name} {width} must be divisible by 4: positions are embedded along two axes, each with sines and cosines"
        )
