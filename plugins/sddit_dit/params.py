"""Settings of the DiT backbone and what follows from them: sizes, taps, cost. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sddit.errors import Problem, SdditError
from sddit.interfaces import BackboneParams, Cost, Params, RecipeView, Shapes, Tap
from sddit_dit.cost import Sizes, network_cost

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
"""Depth, width and heads of the published sizes (arXiv:2212.09748, table 1)."""

SEPARATE = {"width": 512, "heads": 16, "bridge": "shared", "bridge_init": "zero"}
"""Defaults of a separate decoder: those of MaskDiT (arXiv:2306.09305)."""


def _refuse_bad_width(name: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{name} {width} is not divisible by {heads} heads")
    if width % 4:
        raise ValueError(
            f"{name} {width} must be divisible by 4: positions are embedded along two axes, each with sines and cosines"
        )


class TransformerParams(BackboneParams):
    """Sizes, patches and taps of a transformer whose first `encoder_depth` blocks hidden tokens may skip.

    Backbones of other plugins may use it together with `sddit_dit.frame.Frame`.
    """

    size: Literal["", "S", "B", "L", "XL"] = Field(
        "", description="A published size. If not set: S, or the numbers depth, width and heads."
    )
    depth: int | None = Field(
        None, ge=1, le=1000, description="Number of blocks, without those of a separate decoder. Only without `size`."
    )
    width_: int | None = Field(None, alias="width", ge=4, le=65536, description="Token width. Only without `size`.")
    heads: int | None = Field(None, ge=1, le=1024, description="Attention heads. Only without `size`.")
    patch: int = Field(2, ge=1, le=256, description="Pixels along each side of a patch.")
    mlp_ratio: float = Field(4.0, gt=0, le=64, description="Width of a block's MLP as a multiple of its token width.")

    @model_validator(mode="before")
    @classmethod
    def _default_size(cls, values: Any) -> Any:
        """Fill in the default size, so that a resolved recipe shows it."""
        if not isinstance(values, dict) or values.get("size"):
            return values
        numbers = any(values.get(key) is not None for key in ("depth", "width", "heads"))
        return values if numbers else {**values, "size": "S"}

    @model_validator(mode="after")
    def _refuse_two_sizes(self) -> Self:
        numbers = {"depth": self.depth, "width": self.width_, "heads": self.heads}
        set_keys = [key for key, value in numbers.items() if value is not None]
        if self.size and set_keys:
            raise ValueError(f'size "{self.size}" already sets {", ".join(set_keys)}; set a size or numbers, not both')
        if not self.size and len(set_keys) < len(numbers):
            missing = [key for key in numbers if key not in set_keys]
            raise ValueError(f"without a size, depth, width and heads are all needed; missing: {', '.join(missing)}")
        _, width, heads = self.named_size
        _refuse_bad_width("width", width, heads)
        return self

    @property
    def named_size(self) -> tuple[int, int, int]:
        """Depth, width and heads."""
        if self.size:
            return SIZES[self.size]
        assert self.depth is not None and self.width_ is not None and self.heads is not None
        return self.depth, self.width_, self.heads

    @property
    def block_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and heads of every block, in depth order: encoder, then decoder."""
        depth, width, heads = self.named_size
        return ((width, heads),) * depth

    @property
    def encoder_depth(self) -> int:
        """Number of blocks in the sparse span, which hidden tokens skip; all blocks if there is no decoder."""
        return len(self.block_sizes)

    @property
    def zero_null(self) -> bool:
        """Return whether a dropped label is embedded as the zero vector instead of a learned row."""
        return False

    def block_of(self, tap: Tap) -> int:
        """Return the number, from 1, of the block whose output `tap` reads.

        A depth fraction of 0.3 of D blocks, decoder included, is block max(1, round(0.3 D)). Raises ValueError for a
        tap that does not exist.
        """
        total = len(self.block_sizes)
        has_decoder = self.encoder_depth < total
        if tap == "encoder":
            return self.encoder_depth
        if tap == "decoder" and has_decoder:
            return total
        if isinstance(tap, float) and 0 < tap <= 1:
            return max(1, round(tap * total))
        if isinstance(tap, int) and 1 <= tap <= total:
            return tap
        names = "encoder, decoder" if has_decoder else "encoder"
        raise ValueError(f"{names}, a depth fraction such as 0.3, or a block from 1 to {total}; got {tap!r}")

    def last_block(self, taps: Sequence[Tap], output: bool) -> int:
        """Return the number of blocks that must run for `taps` and, if `output`, for the output."""
        return len(self.block_sizes) if output else max(map(self.block_of, taps), default=0)

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        yield from self._patch_problems(recipe.shapes.image)
        narrowest = min(width for width, _ in self.block_sizes)
        if int(narrowest * self.mlp_ratio) < 1:
            yield Problem(
                "SD-R108",
                "the MLP of a block would have no units",
                where="backbone.mlp_ratio",
                got=f"{self.mlp_ratio:g} of a width of {narrowest}",
                expect=f"at least {1 / narrowest:g}",
            )

    def grid(self, shapes: Shapes) -> tuple[int, int]:
        """Return the numbers of tokens along H and W. Raises SD-R108 if the image cannot be cut into patches."""
        if problems := self._patch_problems(shapes.image):
            raise SdditError(*problems)
        return shapes.image[1] // self.patch, shapes.image[2] // self.patch

    def width(self, tap: Tap) -> int:
        return self.block_sizes[self.block_of(tap) - 1][0]

    def tap_text(self, tap: Tap) -> str:
        return f"block {self.block_of(tap)} of {len(self.block_sizes)}"

    @property
    def supports_masking(self) -> bool:
        """Return whether there is a decoder, which restores hidden tokens."""
        return self.encoder_depth < len(self.block_sizes)

    def _patch_problems(self, image: tuple[int, int, int]) -> list[Problem]:
        _, height, width = image
        if height % self.patch == 0 and width % self.patch == 0:
            return []
        fitting = [str(p) for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
        return [
            Problem(
                "SD-R108",
                f"an image of {height} x {width} cannot be cut into patches of {self.patch} x {self.patch}",
                where="backbone.patch",
                got=str(self.patch),
                expect=f"one of {', '.join(fitting)}",
            )
        ]


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
            _refuse_bad_width("width", self.width, self.heads)
        return self


class DiTParams(TransformerParams):
    """A diffusion transformer, with an optional decoder and a sparse span that hidden tokens skip."""

    cls_token: bool = Field(
        False, description="Run a learned class token with the encoder; it is dropped before the decoder."
    )
    null_label: Literal["row", "zero"] = Field(
        "row", description="Embedding of a dropped label: a learned row (DiT) or the zero vector (MaskDiT)."
    )
    decoder: DecoderParams | None = Field(
        None, description="The decoder. If not set: a plain DiT, which cannot hide tokens."
    )
    fill: Literal["input", "learned", "zero"] | None = Field(
        None,
        description="Decoder input at hidden positions: the embedded noisy token (input, SD-DiT, the default), a "
        "learned mask token (learned, MaskDiT), or only the position (zero). Only with a decoder.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_fill(cls, values: Any) -> Any:
        """Fill in the default fill, so that a resolved recipe shows it."""
        if isinstance(values, dict) and values.get("decoder") is not None and values.get("fill") is None:
            return {**values, "fill": "input"}
        return values

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.decoder is None:
            if self.fill is not None:
                raise ValueError("fill: no effect without a decoder, because no token is hidden")
            return self
        if self.decoder.bridge == "own" and self.fill != "input":
            raise ValueError(
                f'decoder.bridge "own": no effect with fill "{self.fill}", which does not project noisy tokens'
            )
        depth = self.named_size[0]
        if self.decoder.style == "split" and self.decoder.depth >= depth:
            raise ValueError(
                f"a split decoder of {self.decoder.depth} blocks leaves no encoder blocks in a DiT of depth {depth}"
            )
        return self

    @property
    def block_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and heads of every block. A split decoder's blocks count in `depth`, a separate one's are added."""
        if self.decoder is None or self.decoder.style == "split":
            return super().block_sizes
        assert self.decoder.width is not None and self.decoder.heads is not None
        return super().block_sizes + ((self.decoder.width, self.decoder.heads),) * self.decoder.depth

    @property
    def encoder_depth(self) -> int:
        return len(self.block_sizes) - (self.decoder.depth if self.decoder else 0)

    @property
    def zero_null(self) -> bool:
        return self.null_label == "zero"

    @property
    def has_cls(self) -> bool:
        return self.cls_token

    def cost(self, shapes: Shapes, *, num_kept: int, taps: Sequence[Tap] = (), output: bool = True) -> Cost:
        rows, columns = self.grid(shapes)
        sizes = Sizes(
            tokens=rows * columns,
            widths=tuple(width for width, _ in self.block_sizes),
            encoder_depth=self.encoder_depth,
            mlp_ratio=self.mlp_ratio,
            patch_values=shapes.image[0] * self.patch**2,
            outputs=shapes.outputs,
            labels=shapes.num_classes + (not self.zero_null),
            cls_token=self.cls_token,
            bridge=self.decoder.bridge if self.decoder else None,
            fill=self.fill,
        )
        return network_cost(sizes, num_kept=num_kept, blocks=self.last_block(taps, output), output=output)
