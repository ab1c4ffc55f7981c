"""Test the arguments inferred from published tensors, at every published size, without allocating them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sddit.cli.commands.import_weights import print_imported
from sddit.errors import SdditError
from sddit.exchange.conversion import convert_from_layout, convert_to_layout, model_mismatch
from sddit.exchange.exporting import export_run
from sddit.exchange.importing import import_weights, recipe_for_weights
from sddit.exchange.layouts import NO_LABEL_DROP
from sddit.interfaces import Shapes
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve_tables
from sddit.training.networks import default_dtype
from sddit_dit.blocks import sincos_positions
from sddit_dit.constructors import ratio_of
from sddit_dit.diffusers_format import DiffusersFormat
from sddit_dit.formats import CHAIN, DiTFormat, MaskDiTFormat
from sddit_dit.params import SIZES, DiTParams
from sddit_flash.kernels import Eager
from sddit_flash.params import EagerParams

H = {"H": (32, 1280, 16)}  # MaskDiT's own size
State = dict[str, Tensor]


def empty(shapes: dict[str, tuple[int, ...]]) -> State:
    """Return tensors of any size that use the memory of one number."""
    return {name: torch.zeros(1).expand(*shape) for name, shape in shapes.items()}


def block(width: int, condition: int, mlp: int = 0) -> dict[str, tuple[int, ...]]:
    return {
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.fc1.weight": (mlp or 4 * width, width),
        "mlp.fc1.bias": (mlp or 4 * width,),
        "mlp.fc2.weight": (width, mlp or 4 * width),
        "mlp.fc2.bias": (width,),
        "adaLN_modulation.1.weight": (6 * width, condition),
        "adaLN_modulation.1.bias": (6 * width,),
    }


def trunk(
    width: int, depth: int, patch: int, tokens: int, last: int, rows: int, mlp: int = 0
) -> dict[str, tuple[int, ...]]:
    """Return the tensors that DiT and MaskDiT share; `last` is the width before the output of `rows` values."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, tokens, width),
        "x_embedder.proj.weight": (width, 4, patch, patch),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "final_layer.linear.weight": (rows, last),
        "final_layer.linear.bias": (rows,),
        "final_layer.adaLN_modulation.1.weight": (2 * last, width),
        "final_layer.adaLN_modulation.1.bias": (2 * last,),
    }
    for number in range(depth):
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block(width, width, mlp).items()}
    return shapes


def dit_file(
    depth: int, width: int, patch: int = 2, side: int = 32, classes: int = 1000, outputs: int = 2, mlp: int = 0
) -> State:
    shapes = trunk(width, depth, patch, (side // patch) ** 2, width, outputs * 4 * patch**2, mlp)
    return empty({**shapes, "y_embedder.embedding_table.weight": (classes + 1, width)})


def maskdit_file(
    depth: int, width: int, patch: int = 2, classes: int = 1000, decoder: bool = True, inner: int = 512, mlp: int = 0
) -> State:
    tokens = (32 // patch) ** 2
    shapes = trunk(width, depth, patch, tokens, inner if decoder else width, 4 * patch**2, mlp)
    if classes:
        shapes["y_embedder.embedding_table.weight"] = (width, classes)
    if decoder:
        shapes |= {"decoder_pos_embed": (1, tokens, inner), "mask_token": (1, 1, inner)}
        shapes |= {"decoder_layer.linear.weight": (inner, width), "decoder_layer.linear.bias": (inner,)}
        shapes["decoder_layer.adaLN_modulation.1.weight"] = (2 * width, width)
        shapes["decoder_layer.adaLN_modulation.1.bias"] = (2 * width,)
        for number in range(8):
            shapes |= {f"decoder_blocks.{number}.{name}": shape for name, shape in block(inner, width).items()}
    return empty({f"model.{name}": shape for name, shape in shapes.items()})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_dit_arguments_are_inferred_from_tensors(size: str, patch: int) -> None:
    depth, width, heads = SIZES[size]
    known = convert_from_layout(dit_file(depth, width, patch), "dit", {})
    assert known.shapes == Shapes((4, 32, 32), 1000, outputs=2)
    assert known.params.named_size == (depth, width, heads)  # type: ignore[attr-defined]
    assert known.inferred | known.guessed == known.config
    assert known.guessed == {"num_heads": heads}
    assert known.description.noise_schedule == ("ddpm", {"learned_variance": True, **CHAIN})


@pytest.mark.parametrize("size", [*SIZES, *H])
def test_maskdit_arguments_are_inferred_from_tensors(size: str) -> None:
    depth, width, heads = (SIZES | H)[size]
    known = convert_from_layout(maskdit_file(depth, width), "maskdit", {})
    params = known.params
    assert isinstance(params, DiTParams)
    assert params.decoder is not None
    assert (params.named_size, params.null_label, params.fill) == ((depth, width, heads), "zero", "learned")
    assert (params.decoder.width, params.decoder.depth, params.decoder.heads) == (512, 8, 16)
    assert known.shapes == Shapes((4, 32, 32), 1000)
    assert set(known.guessed) == {
        "sigma_data",
        "mae_loss_coef",
        "model.num_heads",
        "decoder.decoder_num_heads",
    }


@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize("outputs", [1, 2])
def test_classes_and_variance_are_inferred(classes: int, outputs: int) -> None:
    known = convert_from_layout(dit_file(2, 384, side=16, classes=classes, outputs=outputs), "dit", {})
    assert known.shapes == Shapes((4, 16, 16), classes, outputs)
    masked = convert_from_layout(maskdit_file(2, 384, classes=classes), "maskdit", {})
    assert masked.shapes.num_classes == classes
    plain = convert_from_layout(maskdit_file(2, 384, decoder=False), "maskdit", {})
    assert plain.params.decoder is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("state", "layout"),
    [
        (dit_file(2, 384), "dit"),
        (dit_file(2, 384, classes=0), "dit"),
        (dit_file(2, 384, outputs=1), "dit"),
        (maskdit_file(2, 384), "maskdit"),
        (maskdit_file(2, 384, classes=0), "maskdit"),
        (maskdit_file(2, 384, decoder=False), "maskdit"),
    ],
)
def test_a_recipe_is_made_that_samples_as_published(state: State, layout: str) -> None:
    known = convert_from_layout(state, layout, {})
    recipe = recipe_for_weights(known, "x")
    assert recipe.shapes == known.shapes
    assert recipe.warnings == ()
    assert recipe.sampler.params.steps == (250 if layout == "dit" else 40)
    assert recipe.guidance.component.name == ("cfg" if known.shapes.num_classes else "none")


@pytest.mark.parametrize(
    ("state", "layout", "given", "words"),
    [
        (dit_file(1, 384), "maskdit", {}, "SD-C455(.|\n)*learns no variance"),
        (
            maskdit_file(1, 384),
            "dit",
            {},
            r"SD-C455(.|\n)*without a counterpart here(.|\n)*--layout maskdit, which has",
        ),
        ({"a": torch.zeros(1)}, "dit", {}, "SD-C455"),
        (dit_file(1, 100), "dit", {}, "SD-C454(.|\n)*num_heads is missing"),
        (dit_file(1, 100), "dit", {"num_heads": 3}, "SD-C454(.|\n)*is not divisible"),
        (dit_file(1, 384), "dit", {"num_classes": 10}, "SD-C454(.|\n)*1000, as in the tensors"),
        (dit_file(1, 384), "dit", {"num_clases": 3}, "SD-C454(.|\n)*unknown config key 'num_clases'"),
        (dit_file(2, 384, side=4) | {"blocks.3.attn.qkv.bias": torch.zeros(1)}, "dit", {}, "SD-C455(.|\n)*no blocks"),
        (dit_file(1, 384) | {"pos_embed": torch.zeros(1, 7, 384)}, "dit", {}, "SD-C455(.|\n)*not a square"),
    ],
)
def test_mismatched_arguments_are_rejected(state: State, layout: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(SdditError, match=words):
        convert_from_layout(state, layout, given)


NO_PLACE: list[tuple[Any, dict[str, Any], Shapes, str]] = [
    (DiTFormat, {"decoder": {}}, Shapes((4, 8, 8), 3), "a decoder"),
    (DiTFormat, {"cls_token": True}, Shapes((4, 8, 8), 3), "a class token"),
    (DiTFormat, {"null_label": "zero"}, Shapes((4, 8, 8), 3), "zero vector"),
    (DiTFormat, {}, Shapes((4, 8, 16), 3), "a non-square image"),
    (DiTFormat, {"patch_rank": 4}, Shapes((4, 8, 8), 3), "low rank"),
    (MaskDiTFormat, {"null_label": "zero", "patch_rank": 4}, Shapes((4, 8, 8), 3), "low rank"),
    (DiffusersFormat, {"patch_rank": 4}, Shapes((4, 8, 8), 3), "low rank"),
    (MaskDiTFormat, {}, Shapes((4, 8, 8), 3), "a learned null label"),
    (MaskDiTFormat, {"null_label": "zero", "decoder": {}}, Shapes((4, 8, 8), 3), "noisy tokens at hidden"),
    (MaskDiTFormat, {"null_label": "zero"}, Shapes((4, 8, 8), 3, 2), "a learned variance"),
    (
        MaskDiTFormat,
        {"null_label": "zero", "decoder": {"style": "split", "depth": 1}, "fill": "zero"},
        Shapes((4, 8, 8), 3),
        "split",
    ),
    (DiffusersFormat, {"decoder": {}}, Shapes((4, 8, 8), 3), "a decoder"),
    (DiffusersFormat, {"cls_token": True}, Shapes((4, 8, 8), 3), "a class token"),
    (DiffusersFormat, {"mlp_ratio": 2.0}, Shapes((4, 8, 8), 3), "an MLP ratio of 2"),
    (DiffusersFormat, {}, Shapes((4, 8, 8), 0), "no classes"),
]


@pytest.mark.parametrize(("layout", "settings", "shapes", "words"), NO_PLACE)
def test_unsupported_features_are_named(layout: Any, settings: dict[str, Any], shapes: Shapes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layout.config(DiTParams(**settings), shapes, {"sigma_data": 0.5})
    with pytest.raises(ValueError, match="without sigma_data"):
        MaskDiTFormat.config(DiTParams(null_label="zero"), Shapes((4, 8, 8), 3), {})


@pytest.mark.parametrize("name", ["dit_a", "maskdit_a"])
def test_published_arguments_round_trip(published: Callable[[str], Any], name: str) -> None:
    stored, layout = published(name), name.removesuffix("_a")
    heads = {"num_heads": 4} if layout == "dit" else {"model": {"num_heads": 4}, "decoder": {"decoder_num_heads": 4}}
    state = {key: tensor.float() for key, tensor in stored.state.items()}
    known = convert_from_layout(state, layout, heads)
    form = {"dit": DiTFormat, "maskdit": MaskDiTFormat}[layout]
    network = known.build_trained()
    theirs = form.to_theirs(network.state_dict(), known.params, known.shapes)  # type: ignore[arg-type]
    assert theirs.keys() == state.keys()
    assert all(torch.equal(theirs[key], state[key]) for key in state)
    corrupted = {**state, (key := next(k for k in state if k.endswith("pos_embed"))): state[key] + 0.1}
    with pytest.raises(SdditError, match=r"SD-C455(.|\n)*fixed table"):
        convert_from_layout(corrupted, layout, heads).parameters()


def test_heads_of_an_unpublished_decoder_are_asked_for() -> None:
    with pytest.raises(SdditError, match=r"SD-C454(.|\n)*decoder\.decoder_num_heads is missing"):
        convert_from_layout(maskdit_file(1, 384, inner=64), "maskdit", {})
    known = convert_from_layout(maskdit_file(1, 384, inner=64), "maskdit", {"decoder": {"decoder_num_heads": 4}})
    assert isinstance(known.params, DiTParams)
    assert known.params.decoder is not None
    assert (known.params.decoder.width, known.params.decoder.heads) == (64, 4)
    assert "decoder.decoder_num_heads" not in known.guessed


@pytest.mark.parametrize("layout", ["dit", "maskdit"])
def test_a_rounded_mlp_ratio_is_kept_as_given(layout: str) -> None:
    """118 rows on a width of 44: 118 / 44, or 2.7, which makes 118.8."""
    file = dit_file(1, 44, mlp=118) if layout == "dit" else maskdit_file(1, 44, decoder=False, mlp=118)

    def ratio(**sizes: float) -> float:
        given: dict[str, Any] = {"num_heads": 4, **sizes}
        known = convert_from_layout(file, layout, given if layout == "dit" else {"model": given})
        assert known.build_backbone("meta").get_submodule("blocks.0.mlp.up").weight.shape == (118, 44)
        return known.params.mlp_ratio  # type: ignore[attr-defined,no-any-return]

    assert (ratio(mlp_ratio=2.7), ratio()) == (2.7, 118 / 44)
    with pytest.raises(SdditError, match=r"SD-C454(.|\n)*mlp_ratio = 2.66(.|\n)*2\.68"):
        ratio(mlp_ratio=2.66)  # 117 rows


def test_every_number_of_rows_has_a_ratio() -> None:
    """Some quotients lose a row when their product with the width is truncated."""
    pairs = [(rows, width) for width in range(4, 200, 4) for rows in range(1, 8 * width, 3)]
    assert all(int(width * ratio_of(rows, width, {})) == rows for rows, width in pairs)
    assert not all(int(width * (rows / width)) == rows for rows, width in pairs)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_file_of_half_precision_is_read(published: Callable[[str], Any], stored: torch.dtype) -> None:
    state = {name: tensor.to(stored) for name, tensor in published("dit_a").state.items()}
    ours = convert_from_layout(state, "dit", {"num_heads": 4}).parameters()
    assert torch.equal(ours["patch.bias"], state["x_embedder.proj.bias"].float())
    off = {**state, "pos_embed": state["pos_embed"] + 4 * torch.finfo(stored).eps}
    with pytest.raises(SdditError, match=r"SD-C455(.|\n)*fixed table"):
        convert_from_layout(off, "dit", {"num_heads": 4}).parameters()


@pytest.mark.parametrize("layout", ["dit", "maskdit"])
def test_a_registered_class_must_be_of_the_size_of_the_tensors(layout: str) -> None:
    file = dit_file(12, 384, patch=8) if layout == "dit" else maskdit_file(12, 384, patch=8)
    for name in ("DiT-S/8", "DiT_S_8", "models.DiT", "models.maskdit.EDMPrecond(model=models.maskdit.DiT)"):
        params = convert_from_layout(file, layout, {"class": name}).params
        assert params.named_size == (12, 384, 6)  # type: ignore[attr-defined]
    for name in ("DiT-B/8", "DiT-S/2", "DiT-H/8", "DiT_L_8"):
        with pytest.raises(SdditError, match=f"SD-C454(.|\n)*class = {name}(.|\n)*depth 12, width 384, patch 8"):
            convert_from_layout(file, layout, {"class": name})


# Weights without label dropout


def test_a_label_table_without_null_row(published: Callable[[str], Any]) -> None:
    """The first nine labels act as in the table of eleven rows; the null label has no effect."""
    stored = published("dit_a")
    name, sizes = "y_embedder.embedding_table.weight", {"num_heads": 4}
    nine = {**stored.state, name: stored.state[name][:9]}
    numbers = stored.inputs["x"], stored.inputs["t"].double(), stored.inputs["y"] % 9

    def raw(state: State, given: dict[str, Any]) -> Tensor:
        with default_dtype(torch.float64):
            network = convert_from_layout(state, "dit", given).build_trained(Eager(EagerParams()))
        out: Tensor = network(*numbers)[0]
        return out.detach()

    full = raw(stored.state, sizes)
    for given in ({"num_classes": 9}, {"class_dropout_prob": 0}, {"num_classes": 9, "class_dropout_prob": 0.0}):
        known = convert_from_layout(nine, "dit", {**sizes, **given})
        assert (known.shapes.num_classes, known.never_drops_labels) == (9, True)
        assert torch.equal(known.state["label.weight"][:9], nine[name])
        assert not known.state["label.weight"][9].any()
        assert torch.equal(raw(nine, {**sizes, **given}), full)
    known = convert_from_layout(nine, "dit", sizes)
    assert (known.shapes.num_classes, known.never_drops_labels) == (8, False)
    for wrong in ({"num_classes": 9, "class_dropout_prob": 0.1}, {"num_classes": 8, "class_dropout_prob": 0.0}):
        with pytest.raises(SdditError, match=r"SD-C454(.|\n)*num_classes"):
            convert_from_layout(nine, "dit", {**sizes, **wrong})


def test_weights_trained_without_label_dropout_are_not_guided() -> None:
    known = convert_from_layout(dit_file(1, 384, side=4, classes=6), "dit", {"class_dropout_prob": 0.0})
    recipe = recipe_for_weights(known, "x")
    assert (recipe.facts.num_classes, recipe.dataset.params.label_drop) == (7, 0)
    assert (recipe.guidance.component.name, recipe.warnings) == ("none", ())
    with pytest.raises(SdditError, match="SD-T903"):
        resolve_tables({**recipe.to_json(), "guidance": {"name": "cfg", "scale": 1.5}}, None)
    dropped = recipe_for_weights(convert_from_layout(dit_file(1, 384, side=4, classes=7), "dit", {}), "x")
    assert dropped.guidance.component.name == "cfg"
    assert "dataset.label_drop = 0.1, not 0" in model_mismatch(dropped, known)


def test_import_and_export_report_missing_label_dropout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: tensor.contiguous() for name, tensor in dit_file(1, 384, patch=4, side=4, classes=2).items()}
    state["pos_embed"] = sincos_positions((1, 1), 384)[None].float()
    save_file(state, tmp_path / "x.safetensors")
    for given, reported in (({}, False), ({"class_dropout_prob": 0.0}, True)):
        imported = import_weights(tmp_path / "x.safetensors", layout="dit", out=tmp_path / "runs", config=given)
        print_imported(imported)
        exported = export_run(imported.folder, layout="dit")
        card = (exported.folder / "README.md").read_text()
        for text in (capsys.readouterr().out, exported.note, card):
            assert (NO_LABEL_DROP in text) is reported
        rows = load_file(exported.folder / "model.safetensors")["y_embedder.embedding_table.weight"]
        assert len(rows) == 3 + reported  # as with dropped labels


# Prediction of the network


@pytest.mark.parametrize("layout", ["dit", "diffusers"])
def test_networks_of_other_noise_schedules_are_rejected(layout: str, make: Any) -> None:
    """The same tensors, trained for another prediction: their implementation would sample noise from them."""
    size = {"depth": 1, "width": 24, "heads": 3}
    state = make(image=(4, 8, 8), num_classes=3, outputs=1, **size).state_dict()

    def recipe(sampler: str, **schedule: Any) -> Recipe:
        tables = {
            "name": "x",
            "backbone": {"name": "dit", **size},
            "noise_schedule": schedule,
            "dataset": {"name": "declared", "image": [4, 8, 8], "classes": 3},
            "pair_sampler": {"name": "single"},
            "loss": {"denoise": {"name": "denoising"}},
            "sampler": {"name": sampler},
        }
        return resolve_tables(tables, None)

    for schedule in ("edm", "flow"):
        with pytest.raises(SdditError, match=f"SD-C453(.|\n)*noise_schedule.name = {schedule}, not ddpm"):
            convert_to_layout(recipe("heun", name=schedule), layout, state)
    for other in ({"betas": "cosine"}, {"timesteps": 500}):
        with pytest.raises(SdditError, match=r"SD-C453(.|\n)*noise_schedule\.(betas|timesteps) = (cosine|500), not"):
            convert_to_layout(recipe("ddim", name="ddpm", learned_variance=False, **other), layout, state)
    config, theirs = convert_to_layout(recipe("ddim", name="ddpm", learned_variance=False), layout, state)
    assert convert_from_layout(theirs, layout, config).params.named_size == (1, 24, 3)  # type: ignore[attr-defined]


# Diffusers
def diffusers_names(
    layers: int, width: int, patch: int, channels: int, out: int, classes: int
) -> dict[str, tuple[int, ...]]:
    """Return the state dict of `DiTTransformer2DModel`, from its documented config."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed.proj.weight": (width, channels, patch, patch),
        "pos_embed.proj.bias": (width,),
        "proj_out_1.weight": (2 * width, width),
        "proj_out_1.bias": (2 * width,),
        "proj_out_2.weight": (patch**2 * out, width),
        "proj_out_2.bias": (patch**2 * out,),
    }
    for number in range(layers):
        own: dict[str, tuple[int, ...]] = {
            "norm1.emb.timestep_embedder.linear_1.weight": (width, 256),
            "norm1.emb.timestep_embedder.linear_1.bias": (width,),
            "norm1.emb.timestep_embedder.linear_2.weight": (width, width),
            "norm1.emb.timestep_embedder.linear_2.bias": (width,),
            "norm1.emb.class_embedder.embedding_table.weight": (classes + 1, width),
            "norm1.linear.weight": (6 * width, width),
            "norm1.linear.bias": (6 * width,),
            "attn1.to_out.0.weight": (width, width),
            "attn1.to_out.0.bias": (width,),
            "ff.net.0.proj.weight": (4 * width, width),
            "ff.net.0.proj.bias": (4 * width,),
            "ff.net.2.weight": (width, 4 * width),
            "ff.net.2.bias": (width,),
        }
        for letter in "qkv":
            own |= {f"attn1.to_{letter}.weight": (width, width), f"attn1.to_{letter}.bias": (width,)}
        shapes |= {f"transformer_blocks.{number}.{name}": shape for name, shape in own.items()}
    return shapes


def test_diffusers_names_and_shapes_are_those_of_its_config(make: Any) -> None:
    shapes = Shapes((4, 8, 8), 10, outputs=2)
    network = make(image=shapes.image, num_classes=10, outputs=2, depth=3, width=24, heads=3)
    theirs = DiffusersFormat.to_theirs(network.state_dict(), network.params, shapes)
    assert {name: tuple(t.shape) for name, t in theirs.items()} == diffusers_names(3, 24, 2, 4, 8, 10)
    config = DiffusersFormat.config(network.params, shapes, {})
    assert (config["num_attention_heads"], config["attention_head_dim"]) == (3, 8)
    assert (config["sample_size"], config["out_channels"], config["num_embeds_ada_norm"]) == (8, 8, 10)
    known = convert_from_layout(theirs, "diffusers", config)
    assert known.guessed == {}
    assert all(torch.equal(known.state[name], tensor) for name, tensor in network.state_dict().items())
    corrupted = {**theirs, (name := "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"): theirs[name] + 1}
    with pytest.raises(SdditError, match=r"SD-C455(.|\n)*different embedders"):
        convert_from_layout(corrupted, "diffusers", config)


def test_the_published_diffusers_folder_loads_without_its_config() -> None:
    known = convert_from_layout(
        empty(diffusers_names(28, 1152, 2, 4, 8, 1000)), "diffusers", {"_class_name": "Transformer2DModel"}
    )
    assert known.params.named_size == (28, 1152, 16)  # type: ignore[attr-defined]
    assert known.shapes == Shapes((4, 32, 32), 1000, outputs=2)
    assert math.prod(known.state["patch.weight"].shape) == 1152 * 16
