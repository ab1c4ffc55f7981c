"""Infer the constructor arguments of a published network from its tensors' names and shapes, and write them for ours.

The counterpart of `formats`, which converts the tensors. Formats of networks related to DiT use it too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sddit.interfaces import Shapes
from sddit_dit.params import SIZES, DiTParams, TransformerParams

Arguments = dict[str, Any]

DEFAULT_HEADS = {384: 6, 512: 16, 768: 12, 1024: 16, 1152: 16, 1280: 16}
"""Attention heads by width: DiT's S, B, L and XL, MaskDiT's decoder and its H. They cannot be read from tensors."""

DECODER_WIDTH = 512
"""Width of MaskDiT's published decoder."""

H = (32, 1280, 16)
"""Depth, width and heads of MaskDiT's additional size."""


def infer_dit(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> tuple[Arguments, Arguments]:
    """Return (arguments read from DiT's tensors, defaults of the rest): the heads are those of the published width."""
    sizes = {**sizes_in(state, "blocks.0.mlp.fc1.weight", given), "depth": blocks_in(state, "blocks.")}
    arguments = {**sizes, **image_in(state), **labels_and_outputs_in(state, given), **class_in(sizes, given)}
    return arguments, heads_of(sizes["hidden_size"])


def infer_maskdit(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> tuple[Arguments, Arguments]:
    """Return (arguments read from MaskDiT's tensors, defaults of the rest): sigma_data is EDM's."""
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    sizes, image = sizes_in(bare, "blocks.0.mlp.fc1.weight", given.get("model", {})), image_in(bare)
    sizes["depth"] = blocks_in(bare, "blocks.")
    if (rows := len(bare["final_layer.linear.weight"])) != image["in_channels"] * sizes["patch_size"] ** 2:
        raise KeyError(f"a last layer of {rows} rows is not MaskDiT's, which learns no variance")
    arguments: Arguments = {
        **{
            theirs: image[name]
            for name, theirs in (("input_size", "img_resolution"), ("in_channels", "img_channels"))
            if name in image
        },
        "num_classes": bare["y_embedder.embedding_table.weight"].shape[1]
        if "y_embedder.embedding_table.weight" in bare
        else 0,
        "use_decoder": "decoder_layer.linear.weight" in bare,
        "model": sizes,
        **class_in(sizes, given),
    }
    defaults: Arguments = {"sigma_data": 0.5, "mae_loss_coef": 0.1 if "mask_token" in bare else 0.0}
    defaults["model"] = heads_of(sizes["hidden_size"])
    if arguments["use_decoder"]:
        width = len(bare["decoder_layer.linear.weight"])
        arguments["decoder"] = {"decoder_hidden_size": width, "decoder_depth": blocks_in(bare, "decoder_blocks.")}
        if width == DECODER_WIDTH:
            defaults["decoder"] = {"decoder_num_heads": DEFAULT_HEADS[width]}
    return arguments, defaults


def sizes_in(state: Mapping[str, Tensor], mlp: str, given: Mapping[str, Any]) -> Arguments:
    """Return width, patch and MLP ratio. Raises KeyError for tensors of a network unrelated to DiT."""
    width, _, patch, _ = state["x_embedder.proj.weight"].shape
    return {"hidden_size": width, "patch_size": patch, "mlp_ratio": ratio_of(len(state[mlp]), width, given)}


def ratio_of(rows: int, width: int, given: Mapping[str, Any]) -> float:
    """Return an MLP ratio with int(width * ratio) == rows; the given one if it satisfies this."""
    stated, exact = given.get("mlp_ratio"), rows / width
    if isinstance(stated, int | float) and 0 < stated < math.inf and int(width * stated) == rows:
        return float(stated)
    return exact if int(width * exact) == rows else math.nextafter(exact, math.inf)


def class_in(sizes: Arguments, given: Mapping[str, Any], family: str = "DiT", *, lost: int = 0) -> Arguments:
    """Return the given `class` if it names a registered size that fits the tensors, otherwise the size of the tensors.

    Return nothing for a class with another name, such as that of a module.

    Args:
        sizes: depth, width and patch read from the tensors.
        lost: how many blocks of its depth a network of this layout may lack.
    """
    if (named := registered(str(given.get("class")), family)) is None:
        return {}
    depth, width, _ = (SIZES | {"H": H})[named[0]]
    shape = f"depth {sizes['depth']}, width {sizes['hidden_size']}, patch {sizes['patch_size']}"
    same = (width, named[1]) == (sizes["hidden_size"], sizes["patch_size"])
    return {"class": given["class"] if same and 0 <= depth - sizes["depth"] <= lost else shape}


def sized(name: str, family: str = "DiT") -> Arguments:
    """Return size and patch of a registered class: DiT_S_2, DiT-S/2. Raises ValueError for an unknown name."""
    if (known := registered(name, family)) is None or known[0] not in SIZES:
        raise ValueError(f"unknown model {name!r}; expected a name such as {family}-S/2, {family}-B/4 or {family}-XL/2")
    return {"size": known[0], "patch": known[1]}


def registered(name: str, family: str) -> tuple[str, int] | None:
    """Return size and patch of the class registered under a name, or None; H is MaskDiT's."""
    match = re.fullmatch(rf"{family}[-_](S|B|L|XL|H)[-_/](\d+)", name)
    return (match[1], int(match[2])) if match else None


def image_in(state: Mapping[str, Tensor]) -> Arguments:
    """Return the channels and, if positions are in the file, the side of the image."""
    _, channels, patch, _ = state["x_embedder.proj.weight"].shape
    if "pos_embed" not in state:
        return {"in_channels": channels}
    tokens = state["pos_embed"].shape[1]
    if (side := math.isqrt(tokens)) ** 2 != tokens:
        raise KeyError(f"{tokens} positions are not a square grid")
    return {"in_channels": channels, "input_size": side * patch}


def labels_and_outputs_in(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> Arguments:
    """Return the number of classes, and whether a variance is learned.

    The label table has a last row for the null label if labels were dropped in training.
    """
    _, channels, patch, _ = state["x_embedder.proj.weight"].shape
    outputs, rest = divmod(len(state["final_layer.linear.weight"]), channels * patch**2)
    if rest or outputs not in (1, 2):
        raise KeyError(f"a last layer of {len(state['final_layer.linear.weight'])} rows is not DiT's")
    rows = len(state["y_embedder.embedding_table.weight"])
    labels = (
        {"num_classes": rows, "class_dropout_prob": 0.0} if no_label_drop(rows, given) else {"num_classes": rows - 1}
    )
    return {**labels, "learn_sigma": outputs == 2}


def no_label_drop(rows: int, given: Mapping[str, Any]) -> bool:
    """Return whether a label table has no null row, as in networks trained without label dropout.

    Only the given arguments determine it.
    """
    return bool(given.get("class_dropout_prob", 0.0 if given.get("num_classes") == rows else 0.1) == 0)


def with_null(ours: dict[str, Tensor], given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return `ours` with a row of zeros for the null label if the label table has none."""
    table = ours.get("label.weight")
    if table is None or not no_label_drop(len(table), given):
        return ours
    return {**ours, "label.weight": torch.cat([table, torch.zeros_like(table[:1])])}


def blocks_in(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of blocks under a prefix. Raises KeyError if there are none."""
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)}
    if not numbers or numbers != set(range(len(numbers))):
        raise KeyError(f"no blocks {prefix}0, {prefix}1, ...")
    return len(numbers)


def heads_of(width: int) -> Arguments:
    """Return the published number of heads for a width, if any."""
    return {"num_heads": DEFAULT_HEADS[width]} if width in DEFAULT_HEADS else {}


def config_dit(params: DiTParams, shapes: Shapes) -> Arguments:
    """Return DiT's arguments. Raises ValueError for features that DiT does not have.

    A route on which tokens are carried is none of them: with nothing hidden the network is a plain DiT.
    """
    refuse({"a decoder": params.decoder is not None, "a class token": params.cls_token})
    refuse({"a zero vector as null label": params.null_label == "zero", "a fused route": params.span_fill == "fused"})
    return plain_config(params, shapes)


def plain_config(params: TransformerParams, shapes: Shapes) -> Arguments:
    """Return the arguments that DiT and MDT share."""
    return {
        "input_size": side_of(shapes),
        "in_channels": shapes.image[0],
        "num_classes": shapes.num_classes,
        "learn_sigma": shapes.outputs == 2,
        **numbers(params),
    }


def config_maskdit(params: DiTParams, shapes: Shapes, schedule: Mapping[str, Any]) -> Arguments:
    """Return MaskDiT's arguments. Raises ValueError for features that MaskDiT does not have."""
    decoder = params.decoder
    refuse({"a class token": params.cls_token, "a learned variance": shapes.outputs > 1})
    refuse({"a fused route": params.span_fill == "fused"})
    refuse({"a learned null label": params.null_label == "row"})
    refuse({"a noise schedule without sigma_data": "sigma_data" not in schedule})
    if decoder is not None:
        refuse(
            {"a split decoder": decoder.style == "split", "a second bridge for noisy tokens": decoder.bridge == "own"}
        )
        refuse({"noisy tokens at hidden positions": params.fill == "input"})
    config = {
        "img_resolution": side_of(shapes),
        "img_channels": shapes.image[0],
        "num_classes": shapes.num_classes,
        "sigma_data": schedule["sigma_data"],
        "use_decoder": decoder is not None,
        "mae_loss_coef": 0.1 if params.fill == "learned" else 0.0,
        "model": numbers(params),
    }
    if decoder is not None:
        config["decoder"] = {
            "decoder_hidden_size": decoder.width,
            "decoder_depth": decoder.depth,
            "decoder_num_heads": decoder.heads,
        }
    return config


def numbers(params: TransformerParams) -> Arguments:
    """Return the sizes as numbers. Raises ValueError for a patch embedding of low rank."""
    refuse({"a patch embedding of low rank": params.patch_rank is not None})
    depth, width, heads = params.named_size
    return {
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "patch_size": params.patch,
        "mlp_ratio": params.mlp_ratio,
    }


def side_of(shapes: Shapes) -> int:
    """Return the side of a square image. Raises ValueError for other images."""
    _, height, width = shapes.image
    refuse({f"a non-square image of {height} x {width}": height != width})
    return height


def refuse(features: Mapping[str, bool]) -> None:
    """Raise ValueError for the first unsupported feature that is present."""
    for feature, present in features.items():
        if present:
            raise ValueError(f"this format does not support {feature}")
