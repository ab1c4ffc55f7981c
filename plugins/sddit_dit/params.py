"""Settings of the DiT backbone and what follows from them: sizes, taps, cost. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sddit.errors import Problem, SdditError
from sddit.interfaces import BackboneParams, Cost, LossView, RecipeView, Shapes, SlotView, Tap
from sddit_dit.cost import Sizes, network_cost
from sddit_dit.parts import DecoderParams, RouteParams, refuse_bad_width

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
"""Depth, width and heads of the published sizes (arXiv:2212.09748, table 1)."""

SpanFill = Literal["input", "learned", "zero", "fused"]

HeadName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


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
    patch_rank: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Rank of the patch embedding: pixels -> patch_rank -> width, two linear maps (arXiv:2511.13720, "
        "which publishes 128 for large patches of pixels). Default: pixels -> width directly.",
        json_schema_extra={"omit_default": True},
    )
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
        refuse_bad_width("width", width, heads)
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
    def head_blocks(self) -> Mapping[str, int]:
        """Return the auxiliary heads by name, and the number of the block that each reads, from 1."""
        return {}

    @property
    def head_tokens(self) -> Mapping[str, Literal["all", "visible"]]:
        """A head within the sparse span sees, and so predicts, only the tokens that are not hidden."""
        hides = self.encoder_depth < len(self.block_sizes)
        blocks = self.head_blocks.items()
        inside = {name: hides and self.span_start < number <= self.encoder_depth for name, number in blocks}
        return {name: "visible" if seen else "all" for name, seen in inside.items()}

    def is_of_head(self, parameter: str) -> bool:
        return parameter.startswith("aux_heads.")

    @property
    def span_start(self) -> int:
        """Number of blocks before the sparse span: they see all tokens."""
        return 0

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

    def warnings(self, recipe: RecipeView) -> Iterable[str]:
        values, width = recipe.shapes.image[0] * self.patch**2, self.block_sizes[0][0]
        if self.patch_rank is not None and self.patch_rank >= min(values, width):
            yield (
                f"patch_rank = {self.patch_rank} restricts nothing: a patch has {values} numbers, and a token {width}"
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


class DiTParams(TransformerParams):
    """A diffusion transformer, with an optional decoder and a sparse span that hidden tokens skip."""

    cls_token: bool = Field(
        False, description="Run a learned class token with the encoder; it is dropped before the decoder."
    )
    null_label: Literal["row", "zero"] = Field(
        "row", description="Embedding of a dropped label: a learned row (DiT) or the zero vector (MaskDiT)."
    )
    decoder: DecoderParams | None = Field(
        None, description="The decoder. If not set, and no route is set: a plain DiT, which cannot hide tokens."
    )
    fill: Literal["input", "learned", "zero"] | None = Field(
        None,
        description="Decoder input at hidden positions: the embedded noisy token (input, SD-DiT, the default), a "
        "learned mask token (learned, MaskDiT), or only the position (zero). Only with a decoder.",
    )
    route: RouteParams | None = Field(
        None,
        description="Which blocks hidden tokens skip. If not set: those before the decoder.",
        json_schema_extra={"omit_default": True},
    )
    aux_heads: dict[HeadName, float | int | str] = Field(
        default_factory=dict,
        description="Auxiliary heads by name, each a second output layer after an earlier block: a depth fraction, a "
        'block number or "encoder". A loss trains one by its key `head`; guidance `internal` reads one. They have no '
        "learned variance.",
        json_schema_extra={"omit_default": True},
    )

    @model_validator(mode="before")
    @classmethod
    def _default_fill(cls, values: Any) -> Any:
        """Fill in the default fill, so that a resolved recipe shows it."""
        if not isinstance(values, dict):
            return values
        if values.get("decoder") is not None:
            return values if values.get("fill") is not None else {**values, "fill": "input"}
        route = values.get("route")
        if isinstance(route, dict) and route.get("fill") is None:
            return {**values, "route": {**route, "fill": "carried"}}
        return values

    @model_validator(mode="after")
    def _refuse_bad_routes(self) -> Self:
        if self.route is None:
            return self
        if self.decoder is not None:
            if idle := [key for key in ("to", "fill") if getattr(self.route, key) is not None]:
                instead = {"to": "all tokens return at its first block", "fill": "set backbone.fill"}
                raise ValueError(f"route.{idle[0]}: not with a decoder: {instead[idle[0]]}")
        elif self.route.to is None:
            raise ValueError("route.to: missing; after how many blocks all tokens return, or set a decoder")
        if not self.span_start < self.encoder_depth < len(self.block_sizes):
            raise ValueError(
                f"route: hides tokens from after block {self.span_start} to after block {self.encoder_depth}; expected "
                f"at least one block between, and one after, of {len(self.block_sizes)} blocks"
            )
        return self

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        for name, block in self.head_blocks.items():
            if block == len(self.block_sizes):
                raise ValueError(
                    f"aux_heads.{name}: after the last block it is the output itself; choose an earlier one"
                )
        if self.decoder is None:
            if self.fill is not None:
                instead = "no token is hidden" if self.route is None else "the key of a route is route.fill"
                raise ValueError(f"fill: no effect without a decoder, because {instead}")
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
        if self.route is not None and self.route.to is not None:
            return self._blocks_before(self.route.to)
        return len(self.block_sizes) - (self.decoder.depth if self.decoder else 0)

    @property
    def span_start(self) -> int:
        return self._blocks_before(self.route.from_) if self.route else 0

    def _blocks_before(self, point: int | float) -> int:
        """Return the number of blocks that a `BlocksOrFraction` names."""
        return point if isinstance(point, int) else round(point * len(self.block_sizes))

    @property
    def span_fill(self) -> SpanFill | None:
        """What the block after the sparse span gets at hidden positions; None if no token can be hidden.

        `input` is the token's value before the span: the embedded noisy token if the span starts at the first block.
        """
        if self.route is None or self.decoder is not None:
            return self.fill
        return "fused" if self.route.fill == "fused" else "input"

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        """A route matters where something is hidden; if it fuses both paths, always."""
        views = recipe.pair_sampler.params.views()
        hides = any(view.is_masked or view.drops_path for view in views)
        return () if hides or self.route is None or self.span_fill == "fused" else ("route",)

    @property
    def supports_dense_path(self) -> bool:
        return self.supports_masking

    @property
    def head_blocks(self) -> dict[str, int]:
        return {name: self.block_of(tap) for name, tap in self.aux_heads.items()}

    @property
    def encoder_gradient(self) -> float:
        """Factor on the gradient from the decoder to the encoder."""
        named = {"full": 1.0, "none": 0.0}
        value = self.decoder.encoder_gradient if self.decoder else "full"
        return named[value] if isinstance(value, str) else value

    @property
    def zero_null(self) -> bool:
        return self.null_label == "zero"

    def warnings(self, recipe: RecipeView) -> Iterable[str]:
        yield from super().warnings(recipe)
        trained = {head for loss in recipe.active_losses.values() for head in loss.params.needs().student.heads}
        for name in self.aux_heads:
            if name not in trained:
                yield f"aux_heads.{name} is not trained: no loss reads it, such as one with head = {name!r}"
        if self.encoder_gradient == 0 and not any(map(self._trains_encoder, recipe.active_losses.values())):
            yield (
                'decoder.encoder_gradient = "none" and no loss that reads tokens of the encoder: the encoder is not '
                "trained and keeps its initial weights, or those of [start]"
            )

    def _trains_encoder(self, loss: SlotView[LossView]) -> bool:
        """Return whether a loss has a gradient to the encoder that does not pass the decoder."""
        wanted = loss.params.needs().student
        blocks = [*map(self.block_of, wanted.taps), *(self.head_blocks[head] for head in wanted.heads)]
        return loss.params.trains_network and any(block <= self.encoder_depth for block in blocks)

    @property
    def has_cls(self) -> bool:
        return self.cls_token

    def cost(self, shapes: Shapes, *, num_kept: int, taps: Sequence[Tap] = (), output: bool = True) -> Cost:
        rows, columns = self.grid(shapes)
        sizes = Sizes(
            tokens=rows * columns,
            widths=tuple(width for width, _ in self.block_sizes),
            span_start=self.span_start,
            encoder_depth=self.encoder_depth,
            mlp_ratio=self.mlp_ratio,
            patch_values=shapes.image[0] * self.patch**2,
            patch_rank=self.patch_rank,
            outputs=shapes.outputs,
            labels=shapes.num_classes + (not self.zero_null),
            cls_token=self.cls_token,
            bridge=self.decoder.bridge if self.decoder else None,
            fill=self.span_fill,
            head_blocks=tuple(self.head_blocks.values()),
        )
        return network_cost(sizes, num_kept=num_kept, blocks=self.last_block(taps, output), output=output)
