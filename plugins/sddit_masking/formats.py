"""Convert published weights of MDT to and from our names.

Each format is a `sddit.interfaces.WeightFormat`. Their files also contain relative position indices, which we compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from sddit.interfaces import NOTHING, Shapes, WeightDescription
from sddit_dit.constructors import (
    Arguments,
    blocks_in,
    class_in,
    image_in,
    labels_and_outputs_in,
    plain_config,
    refuse,
    sizes_in,
    with_null,
)
from sddit_dit.formats import (
    BLOCK,
    FILES,
    LABEL,
    OUTER,
    Rules,
    State,
    describe_dit,
    guided,
    kernel,
    renamed,
)
from sddit_masking.mdt import relative_position_index
from sddit_masking.params import VERSIONS, MDTParams

TABLE = "attn.rel_pos_bias.relative_position_bias_table"
POSITION_INDEX = "attn.rel_pos_bias.relative_position_index"
IN_BLOCK: Rules = ((TABLE, "table"), ("skip_linear.", "skip."), *((theirs, f"block.{ours}") for theirs, ours in BLOCK))
TOKENS: Rules = (
    ("pos_embed", "positions"),
    ("decoder_pos_embed", "interpolater.positions"),
    ("mask_token", "interpolater.mask_token"),
)
GUIDANCE = {"scale": 3.8, "shape": "power_cosine", "power": 4.0}
SIDE = ("sideblocks.0", "interpolater.block")


class MDTv1Format:
    """Format of sail-sg/MDT, branch mdtv1."""

    files = FILES
    note = ""
    idle = ("class", "class_dropout_prob", "mask_ratio")
    version = "v1"
    family = "MDT"
    lists: tuple[str, ...] = ("blocks",)  # lists of blocks, in depth order
    lost = 0  # how many blocks of its depth a network may lack

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> WeightDescription:
        """Describe a network from `input_size`, `num_classes`, `class` (MDT_S_2) or the sizes, `decode_layer`."""
        described = describe_dit(config, cls.family)
        decoder = config.get("decode_layer", VERSIONS[cls.version]["decoder_depth"])
        settings = {**described.backbone, "version": cls.version, "decoder_depth": decoder}
        return replace(described, backbone=settings, recipe=cls._recipe(described))

    @classmethod
    def config(cls, params: MDTParams, shapes: Shapes, schedule: Mapping[str, Any]) -> Arguments:
        """Return the arguments. Raises ValueError if the skips differ from those of this version."""
        own = VERSIONS[cls.version]
        refuse(
            {
                f"{key} = {value}": value != own[key]
                for key in ("long_skips", "input_skips")
                if (value := getattr(params, key)) is not None
            }
        )
        return {**plain_config(params, shapes), "decode_layer": params.decoder_depth}

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> tuple[Arguments, Arguments]:
        """Infer all arguments; relative position tables give the heads. In v1 the decoder depth is the default."""
        blocks = [blocks_in(state, f"{part}.") for part in cls.lists]
        first = f"{cls.lists[0]}.0"
        sizes = {**sizes_in(state, f"{first}.mlp.fc1.weight", given), "depth": sum(blocks)}
        arguments: Arguments = {
            **sizes,
            **image_in(state),
            **labels_and_outputs_in(state, given),
            **class_in(sizes, given, cls.family, lost=cls.lost),
            "num_heads": state[f"{first}.{TABLE}"].shape[1],
        }
        if given.get("depth") == sizes["depth"] + cls.lost:
            arguments["depth"] = given["depth"]
        if len(blocks) == 1:
            return arguments, {"decode_layer": VERSIONS[cls.version]["decoder_depth"]}
        return {**arguments, "decode_layer": blocks[-1]}, {}

    @classmethod
    def _recipe(cls, described: WeightDescription) -> dict[str, Any]:
        """Return a recipe with two views, DiT's sampler and guidance on three channels (arXiv:2303.14389)."""
        shapes = described.shapes
        loss = {**described.recipe["loss"]["denoise"], "over_views": "sum"}
        return {
            **described.recipe,
            "pair_sampler": {"name": "masked_and_full"},
            "loss": {"denoise": loss},
            **(guided(shapes, **GUIDANCE, channels=min(3, shapes.image[0])) if "guidance" in described.recipe else {}),
        }

    @classmethod
    def to_ours(cls, state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> State:
        sizes = [len({name.split(".")[1] for name in state if name.startswith(f"{part}.")}) for part in cls.lists]
        rules = cls._rules(sizes)
        ours = {
            renamed(name, rules): _as_ours(name, tensor) for name, tensor in state.items() if POSITION_INDEX not in name
        }
        return with_null(ours, given)

    @classmethod
    def to_theirs(cls, state: Mapping[str, Tensor], params: MDTParams, shapes: Shapes) -> State:
        rules = cls._rules(cls._sizes(params))
        found = {}
        for ours, tensor in state.items():
            name = renamed(ours, rules, back=True)
            found[name] = kernel(tensor, params, shapes) if ours == "patch.weight" else _as_theirs(name, tensor)
            if name.endswith(TABLE):
                found[name.replace(TABLE, POSITION_INDEX)] = relative_position_index(params.grid(shapes))
        return found

    @classmethod
    def _sizes(cls, params: MDTParams) -> list[int]:
        """Return the number of blocks in each of their lists."""
        return [params.named_size[0]]

    @classmethod
    def _rules(cls, sizes: list[int]) -> Rules:
        """Return pairs of prefixes, theirs and ours."""
        theirs = [f"{part}.{number}" for part, size in zip(cls.lists, sizes, strict=True) for number in range(size)]
        blocks = [SIDE, *((name, f"blocks.{number}") for number, name in enumerate(theirs))]
        in_blocks = ((f"{block}.{part}", f"{ours}.{own}") for block, ours in blocks for part, own in IN_BLOCK)
        return (*in_blocks, *TOKENS, LABEL, *OUTER)


class MDTv2Format(MDTv1Format):
    """Format of sail-sg/MDT, main branch."""

    version = "v2"
    family = "MDTv2"
    lists = ("en_inblocks", "en_outblocks", "de_blocks")
    lost = 1

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> WeightDescription:
        """Describe a network as in v1. If the encoder depth is odd, their network lacks one block, and so does ours."""
        described = super().describe(config)
        full = MDTParams(**described.backbone, long_skips=False)
        if full.encoder_depth % 2 == 0:
            return described
        depth, width, heads = full.named_size
        smaller = {**described.backbone, "size": "", "depth": depth - 1, "width": width, "heads": heads}
        return replace(described, backbone=smaller)

    @classmethod
    def _recipe(cls, described: WeightDescription) -> dict[str, Any]:
        tables = super()._recipe(described)
        tables["pair_sampler"]["mask_spread"] = 0.2
        tables["loss"]["denoise"]["weighting"] = "min_snr"
        return tables

    @classmethod
    def _sizes(cls, params: MDTParams) -> list[int]:
        half = params.encoder_depth // 2
        return [half, half, params.named_size[0] - 2 * half]


def _as_ours(name: str, tensor: Tensor) -> Tensor:
    if name in dict(TOKENS):
        return tensor.squeeze(0).squeeze(0)  # [1, N, D] -> [N, D], [1, 1, D] -> [D]
    if name.endswith(TABLE):
        return tensor.T.contiguous()
    return tensor.flatten(1) if name == "x_embedder.proj.weight" else tensor


def _as_theirs(name: str, tensor: Tensor) -> Tensor:
    if name in dict(TOKENS):
        return tensor[None] if tensor.dim() == 2 else tensor[None, None]
    return tensor.T.contiguous() if name.endswith(TABLE) else tensor
