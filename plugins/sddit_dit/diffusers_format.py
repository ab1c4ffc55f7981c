"""Convert weights to and from the layout of diffusers' `DiTTransformer2DModel`; the library is not needed.

Its files have a copy of the time and label embedders in every block, and three matrices instead of DiT's one qkv. The
library computes the time sinusoid with rates 10000^(-i / 127) where DiT has 10000^(-i / 128), also for its own
conversion of DiT's weights: outputs are equal only if `downscale_freq_shift` is 0 there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sddit.interfaces import NOTHING, Shapes, WeightDescription
from sddit_dit.constructors import DEFAULT_HEADS, Arguments, blocks_in, config_dit, refuse
from sddit_dit.formats import Rules, State, describe_dit, kernel, renamed
from sddit_dit.params import DiTParams

BLOCK: Rules = (
    ("norm1.linear.", "modulation."),
    ("attn1.to_out.0.", "attention.proj."),
    ("ff.net.0.proj.", "mlp.up."),
    ("ff.net.2.", "mlp.down."),
)
OUTER: Rules = (
    ("pos_embed.proj.", "patch."),
    ("proj_out_1.", "final.modulation."),
    ("proj_out_2.", "final.linear."),
)
EMBEDDERS: Rules = (
    ("timestep_embedder.linear_1.", "timestep.hidden."),
    ("timestep_embedder.linear_2.", "timestep.out."),
    ("class_embedder.embedding_table.", "label."),
)
FIXED = {
    "_class_name": "DiTTransformer2DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "dropout": 0.0,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "upcast_attention": False,
}
"""Arguments that all DiTs share."""


class DiffusersFormat:
    """Format of a `transformer` folder as `DiTTransformer2DModel.from_pretrained` reads it."""

    files = ("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors")
    note = (
        "diffusers 0.42 computes the time embedding with different rates than DiT. For equal outputs set "
        "`block.norm1.emb.time_proj.downscale_freq_shift = 0` in every block of the loaded transformer. "
        "The null label of this network is {num_classes}; DiTPipeline always guides with 1000, so use its guidance "
        "only if they are equal."
    )
    idle: tuple[str, ...] = ()

    @staticmethod
    def describe(config: Mapping[str, Any]) -> WeightDescription:
        """Describe a network from `num_attention_heads`, `attention_head_dim`, `num_layers`, `sample_size`, ..."""
        heads, channels = config["num_attention_heads"], config["in_channels"]
        outputs = config.get("out_channels") or channels
        return describe_dit(
            {
                "hidden_size": heads * config["attention_head_dim"],
                "depth": config["num_layers"],
                "num_heads": heads,
                "patch_size": config["patch_size"],
                "input_size": config["sample_size"],
                "in_channels": channels,
                "num_classes": config["num_embeds_ada_norm"],
                "learn_sigma": outputs == 2 * channels,
            }
        )

    @staticmethod
    def config(params: DiTParams, shapes: Shapes, schedule: Mapping[str, Any]) -> Arguments:
        """Return the arguments of a plain DiT.

        Raises ValueError for other networks and for an MLP ratio other than 4.
        """
        known = config_dit(params, shapes)
        refuse({f"an MLP ratio of {params.mlp_ratio:g}": params.mlp_ratio != 4, "no classes": shapes.num_classes == 0})
        return {
            **FIXED,
            "num_attention_heads": known["num_heads"],
            "attention_head_dim": known["hidden_size"] // known["num_heads"],
            "in_channels": known["in_channels"],
            "out_channels": shapes.outputs * known["in_channels"],
            "num_layers": known["depth"],
            "sample_size": known["input_size"],
            "patch_size": known["patch_size"],
            "num_embeds_ada_norm": known["num_classes"],
        }

    @staticmethod
    def infer(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> tuple[Arguments, Arguments]:
        """Infer all arguments but the heads and the side of the image, which is 32 by default."""
        width, channels, patch, _ = state["pos_embed.proj.weight"].shape
        arguments = {
            "in_channels": channels,
            "out_channels": len(state["proj_out_2.weight"]) // patch**2,
            "num_layers": blocks_in(state, "transformer_blocks."),
            "patch_size": patch,
            "num_embeds_ada_norm": len(state[f"{embedders(0)}class_embedder.embedding_table.weight"]) - 1,
        }
        defaults: Arguments = {"sample_size": 32}
        if width in DEFAULT_HEADS:
            heads = DEFAULT_HEADS[width]
            defaults |= {"num_attention_heads": heads, "attention_head_dim": width // heads}
        return arguments, defaults

    @staticmethod
    def to_ours(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> State:
        """Convert to our names. Raises ValueError if the blocks' copies of the embedders differ."""
        ours: State = {}
        for name, tensor in state.items():
            if not (match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)):
                ours[renamed(name, OUTER)] = tensor.flatten(1) if name == "pos_embed.proj.weight" else tensor
            elif match[2].startswith("norm1.emb."):
                shared = renamed(match[2].removeprefix("norm1.emb."), EMBEDDERS)
                if not torch.equal(ours.setdefault(shared, tensor), tensor):
                    raise ValueError(f"the blocks have different embedders: {name}")
            elif part := re.fullmatch(r"attn1\.to_[qkv]\.(weight|bias)", match[2]):
                block = f"transformer_blocks.{match[1]}.attn1.to_"
                ours[f"blocks.{match[1]}.attention.qkv.{part[1]}"] = torch.cat(
                    [state[f"{block}{x}.{part[1]}"] for x in "qkv"]
                )
            else:
                ours[f"blocks.{match[1]}.{renamed(match[2], BLOCK)}"] = tensor
        return ours

    @staticmethod
    def to_theirs(state: Mapping[str, Tensor], params: DiTParams, shapes: Shapes) -> State:
        theirs: State = {}
        for name, tensor in state.items():
            match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
            if match and match[2].startswith("attention.qkv."):
                rest = match[2].removeprefix("attention.qkv.")
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    theirs[f"transformer_blocks.{match[1]}.attn1.to_{letter}.{rest}"] = part.contiguous()
            elif match:
                theirs[f"transformer_blocks.{match[1]}.{renamed(match[2], BLOCK, back=True)}"] = tensor
            elif name.startswith(tuple(ours for _, ours in EMBEDDERS)):
                shared = renamed(name, EMBEDDERS, back=True)
                theirs |= {f"{embedders(block)}{shared}": tensor for block in range(len(params.block_sizes))}
            else:
                weight = kernel(tensor, params, shapes) if name == "patch.weight" else tensor
                theirs[renamed(name, OUTER, back=True)] = weight
        return theirs


def embedders(block: int) -> str:
    """Return the prefix of a block's copy of the embedders."""
    return f"transformer_blocks.{block}.norm1.emb."
