"""Test the backbone: sparse span, taps, truncation, precision, initial values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sddit.interfaces import Tap
from sddit_dit.backbone import DiT
from sddit_dit.blocks import gather_tokens, patchify

B, N = 3, 16
GRID = (4, 4)
VISIBLE = torch.tensor([[0, 3, 4, 7, 8, 9, 12, 14, 15], [1, 2, 3, 4, 5, 6, 10, 11, 13], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
HIDDEN = torch.tensor([[n for n in range(N) if n not in row] for row in VISIBLE.tolist()])
ALL = torch.arange(N).expand(B, -1)


@pytest.fixture
def given() -> dict[str, Tensor]:
    """Return images, noise levels and labels; the last label is the null label of five classes."""
    g = torch.Generator().manual_seed(7)
    x = torch.randn(B, 3, 8, 8, generator=g, dtype=torch.float64)
    return {"x": x, "c_noise": torch.randn(B, generator=g, dtype=torch.float64), "labels": torch.tensor([0, 4, 5])}


def with_changed(x: Tensor, tokens: Tensor) -> Tensor:
    """Return x with other pixels in the patches at `tokens` [B, k]."""
    marks = torch.zeros(B, N, dtype=torch.float64).scatter(1, tokens, 1.0).reshape(B, 1, 4, 4)
    return x + marks.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def input_of(module: nn.Module, run: Any) -> Tensor:
    """Return the first input tensor of `module` during `run`."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run()
    handle.remove()
    return seen[0]


def gradients(model: DiT, given: dict[str, Tensor], **want: Any) -> list[Tensor | None]:
    """Return the gradients of every parameter, for a loss of output and encoder tokens."""
    model.zero_grad()
    raw, _, taps = model(**given, taps=("encoder",), **want)
    (raw.square().sum() + taps["encoder"].patch.square().sum()).backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


# Sparse span


def test_listing_all_tokens_as_visible_is_bit_identical_to_the_dense_forward(
    make: Any, masked_settings: dict[str, Any], given: dict[str, Tensor]
) -> None:
    model = make(**masked_settings)
    dense, _, dense_taps = model(**given, taps=("encoder",))
    masked, _, taps = model(**given, taps=("encoder",), visible=ALL)
    assert torch.equal(masked, dense)
    assert torch.equal(taps["encoder"].patch, dense_taps["encoder"].patch)
    assert dense.std() > 0.01
    assert not torch.equal(model(**given, visible=VISIBLE)[0], dense)


def test_hidden_pixels_never_reach_the_encoder(
    make: Any, masked_settings: dict[str, Any], given: dict[str, Tensor]
) -> None:
    model = make(**masked_settings)
    start = model.params.span_start  # before it, hidden tokens are seen by all

    def encoded(x: Tensor) -> Tensor:
        tokens = model(**{**given, "x": x}, taps=(1, "encoder"), output=False, visible=VISIBLE)[2]
        return torch.cat([tokens[1].patch, tokens["encoder"].patch], dim=1)

    before = encoded(given["x"])
    assert torch.equal(encoded(with_changed(given["x"], HIDDEN)), before) is (start == 0)
    assert not torch.equal(encoded(with_changed(given["x"], VISIBLE[:, :1])), before)


@pytest.mark.parametrize(("fill", "reaches"), [("input", True), ("learned", False), ("zero", False)])
def test_when_hidden_pixels_affect_the_output(make: Any, given: dict[str, Tensor], fill: str, reaches: bool) -> None:
    model = make(decoder={"depth": 1, "width": 12, "heads": 3}, fill=fill)
    x = given["x"].requires_grad_()
    model(**{**given, "x": x}, visible=VISIBLE)[0].square().sum().backward()
    per_token = patchify(x.grad, GRID).abs().sum(dim=2)
    assert bool((per_token.gather(1, HIDDEN) > 0).all()) is reaches
    assert (per_token.gather(1, VISIBLE) > 0).all()


def test_the_encoder_really_runs_on_fewer_tokens(make: Any, given: dict[str, Tensor]) -> None:
    model = make(cls_token=True, decoder={"depth": 1, "width": 12, "heads": 3})

    def run() -> None:
        model(**given, visible=VISIBLE)

    assert input_of(model.blocks[0], run).shape == (B, 1 + 9, 16)
    assert input_of(model.blocks[2], run).shape == (B, N, 12)


@pytest.mark.parametrize("style", ["separate", "split"])
def test_decoder_input_is_encoder_output_at_visible_and_noisy_embedding_at_hidden_positions(
    make: Any, given: dict[str, Tensor], style: str
) -> None:
    """u_i of SD-DiT (arXiv:2403.17004): with fill `input`, in front of the shared bridge or of the split decoder."""
    sizes = {"width": 12, "heads": 3} if style == "separate" else {}
    model = make(depth=3, decoder={"style": style, "depth": 1, **sizes})
    entry = model.decoder_input.bridge if style == "separate" else model.blocks[2]
    u = input_of(entry, lambda: model(**given, visible=VISIBLE))
    e = model.patch(patchify(given["x"], GRID)) + model.positions.table
    h = model(**given, taps=("encoder",), output=False, visible=VISIBLE)[2]["encoder"].patch
    assert torch.equal(gather_tokens(u, HIDDEN), gather_tokens(e, HIDDEN))
    assert torch.equal(gather_tokens(u, VISIBLE), h)
    assert not torch.equal(h, gather_tokens(e, VISIBLE))


def test_learned_and_zero_fills_include_the_position(make: Any, given: dict[str, Tensor]) -> None:
    model = make(decoder={"depth": 1, "width": 12, "heads": 3}, fill="learned")
    u = input_of(model.blocks[2], lambda: model(**given, visible=VISIBLE))
    table, token = model.decoder_input.positions.table, model.decoder_input.mask_token
    assert torch.equal(u[0, HIDDEN[0]], (token + table)[HIDDEN[0]])


def test_only_a_learned_fill_has_a_mask_token(make: Any) -> None:
    decoder = {"depth": 1, "width": 12, "heads": 3}
    names = {fill: dict(make(decoder=decoder, fill=fill).named_parameters()) for fill in ("input", "learned", "zero")}
    assert [any("mask_token" in name for name in names[fill]) for fill in names] == [False, True, False]


def test_noisy_tokens_can_use_a_second_bridge(make: Any, given: dict[str, Tensor]) -> None:
    model = make(decoder={"depth": 1, "width": 12, "heads": 3, "bridge": "own"})
    before, dense = model(**given, visible=VISIBLE)[0], model(**given)[0]
    model.decoder_input.noisy_bridge.linear.weight.data.mul_(2)
    assert not torch.equal(model(**given, visible=VISIBLE)[0], before)
    assert torch.equal(model(**given)[0], dense)


# Symmetry


def test_patches_swapped_with_their_positions_swap_the_output(make: Any, given: dict[str, Tensor]) -> None:
    model = make(cls_token=True, decoder={"depth": 1, "width": 12, "heads": 3})
    swapped = torch.arange(N)
    swapped[[2, 11]] = swapped[[11, 2]]

    def swap_patches(image: Tensor) -> Tensor:
        pixels = image.unflatten(2, (4, 2)).unflatten(4, (4, 2)).permute(0, 1, 2, 4, 3, 5).flatten(2, 3)[:, :, swapped]
        return pixels.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)

    expected = swap_patches(model(**given)[0])
    moved = {**given, "x": swap_patches(given["x"])}
    without_positions = model(**moved)[0]
    for positions in (model.positions, model.decoder_input.positions):
        positions.table.copy_(positions.table[swapped])
    torch.testing.assert_close(model(**moved)[0], expected, rtol=1e-12, atol=1e-12)
    assert (without_positions - expected).abs().max() > 1e-3


def test_groups_do_not_see_each_other(make: Any, masked_settings: dict[str, Any], given: dict[str, Tensor]) -> None:
    if masked_settings.get("cls_token"):
        with pytest.raises(ValueError, match="cannot be combined"):
            make(**masked_settings)(**given, groups=ALL)
        return
    model = make(**masked_settings)
    groups = torch.arange(N).expand(B, -1) % 2
    changed = {**given, "x": with_changed(given["x"], torch.arange(0, N, 2).expand(B, -1))}
    for visible in (None, VISIBLE):
        both = [patchify(model(**g, visible=visible, groups=groups)[0], GRID) for g in (given, changed)]
        torch.testing.assert_close(both[0][:, 1::2], both[1][:, 1::2], rtol=1e-12, atol=1e-12)
        assert (both[0][:, ::2] - both[1][:, ::2]).abs().max() > 1e-3
    ungrouped = [patchify(model(**g)[0], GRID) for g in (given, changed)]
    assert (ungrouped[0][:, 1::2] - ungrouped[1][:, 1::2]).abs().max() > 1e-3


# Taps and cuts


def test_taps_carry_their_positions_and_the_class_token(make: Any, given: dict[str, Tensor]) -> None:
    model = make(cls_token=True, decoder={"depth": 2, "width": 12, "heads": 3})
    _, heads, taps = model(**given, taps=("encoder", "decoder", 0.3, 3), visible=VISIBLE)
    assert heads == {}
    assert list(taps) == ["encoder", "decoder", 0.3, 3]
    assert taps["encoder"].patch.shape == (B, 9, 16)
    assert taps["encoder"].cls.shape == (B, 16)
    assert taps["encoder"].index is VISIBLE
    assert taps["decoder"].patch.shape == (B, N, 12)
    assert taps["decoder"].cls is None
    assert taps["decoder"].index is None
    assert torch.equal(taps[0.3].patch, model(**given, taps=(1,), visible=VISIBLE)[2][1].patch)
    assert not torch.equal(taps[0.3].patch, taps["encoder"].patch)


def test_without_output_it_stops_after_the_deepest_tap(make: Any, given: dict[str, Tensor]) -> None:
    model = make(depth=4, decoder={"depth": 2, "width": 12, "heads": 3})
    ran: list[int] = []
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    raw, _, taps = model(**given, taps=(0.5, 2), output=False)
    assert raw is None
    assert ran == [1, 2, 3]
    assert torch.equal(taps[0.5].patch, model(**given, taps=(3,))[2][3].patch)


@pytest.mark.parametrize("taps", [("encoder",), (1,), ("decoder", 0.4)])
def test_a_truncated_network_reads_the_same_tokens(
    make: Any, masked_settings: dict[str, Any], given: dict[str, Tensor], taps: tuple[Tap, ...]
) -> None:
    model = make(**masked_settings)
    cut = copy.deepcopy(model)
    cut.truncate(taps)
    assert set(dict(cut.named_parameters())) < set(dict(model.named_parameters()))
    for visible in (None, VISIBLE):
        full = model(**given, taps=taps, visible=visible)[2]
        read = cut(**given, taps=taps, output=False, visible=visible)[2]
        assert all(torch.equal(read[tap].patch, full[tap].patch) for tap in taps)
    with pytest.raises(ValueError, match="cannot go further"):
        cut(**given)
    model(**given)  # the original is untouched


def test_a_plain_dit_cannot_hide_tokens(make: Any, given: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="cannot hide tokens"):
        make()(**given, visible=VISIBLE)


def test_blocks_are_registered_once_in_depth_order(make: Any) -> None:
    model = make(depth=3, decoder={"depth": 2, "width": 12, "heads": 3})
    assert [block.attention.proj.out_features for block in model.blocks] == [16, 16, 16, 12, 12]
    assert len(model.state_dict()) == len(dict(model.named_parameters())) == len(set(map(id, model.parameters())))


# Shapes, labels, precision


def test_images_need_not_be_square(make: Any) -> None:
    model = make(image=(2, 4, 10), outputs=2, decoder={"depth": 1, "width": 12, "heads": 3})
    x = torch.randn(1, 2, 4, 10).double()
    raw = model(x, torch.zeros(1).double(), torch.zeros(1, dtype=torch.int64), visible=torch.tensor([[0, 4, 9]]))[0]
    assert raw.shape == (1, 4, 4, 10)


@pytest.mark.parametrize("null_label", ["row", "zero"])
def test_a_model_without_classes_has_only_the_null_label(make: Any, null_label: str) -> None:
    model = make(num_classes=0, null_label=null_label)
    raw = model(torch.randn(2, 3, 8, 8).double(), torch.zeros(2).double(), torch.zeros(2, dtype=torch.int64))[0]
    assert raw.shape == (2, 3, 8, 8)
    assert raw.isfinite().all()


def test_the_condition_affects_the_output(make: Any, given: dict[str, Tensor]) -> None:
    model = make()
    raw = model(**given)[0]
    assert not torch.equal(model(**{**given, "labels": torch.tensor([1, 4, 5])})[0][0], raw[0])
    assert torch.equal(model(**{**given, "labels": torch.tensor([1, 4, 5])})[0][1:], raw[1:])
    assert not torch.equal(model(**{**given, "c_noise": given["c_noise"] + 0.1})[0], raw)


def test_checkpointing_is_bit_identical(make: Any, masked_settings: dict[str, Any], given: dict[str, Tensor]) -> None:
    model = make(**masked_settings)
    stored = gradients(model, given, visible=VISIBLE)
    calls: list[None] = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(None))
    model.set_checkpointing(True)
    recomputed = gradients(model, given, visible=VISIBLE)
    assert len(calls) == 2
    for one, other in zip(stored, recomputed, strict=True):
        assert one is other is None or torch.equal(one, other)
    other_loss = gradients(model, given, visible=ALL)
    assert any(one is not None and not torch.equal(one, two) for one, two in zip(stored, other_loss, strict=True))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def test_float32_and_bf16_follow_float64(make: Any, given: dict[str, Tensor]) -> None:
    """Tolerances: float32 1e-5; bf16 autocast 2e-2 for the output and 3e-2 for each gradient."""
    exact, model = (make(cls_token=True, decoder={"depth": 1, "width": 12, "heads": 3}) for _ in range(2))
    for parameter in exact.parameters():
        parameter.data.mul_(0.3).copy_(parameter.data.float())  # weights of a usual size that float32 can hold
    model.load_state_dict(exact.state_dict())
    model.float()
    single = {key: value.float() if value.is_floating_point() else value for key, value in given.items()}
    raw = exact(**given, visible=VISIBLE)[0]
    assert relative(model(**single, visible=VISIBLE)[0], raw) < 1e-5
    model.zero_grad()
    raw.square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        rough, _, taps = model(**single, taps=("encoder",), visible=VISIBLE)
        rough.square().sum().backward()
    assert rough.dtype == taps["encoder"].patch.dtype == torch.float32
    assert 1e-5 < relative(rough, raw) < 2e-2
    for one, two in zip(model.parameters(), exact.parameters(), strict=True):
        assert relative(one.grad, two.grad) < 3e-2


# Patch embedding


def test_a_low_rank_patch_embedding_sees_few_directions_of_a_patch(make: Any) -> None:
    """As two maps by hand; the tokens of all patches span no more dimensions than the rank, and the direct map more."""
    low, direct = (make(patch=4, width=24, patch_rank=rank) for rank in (3, None))
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reduce, expand = low.patch.reduce, low.patch.expand
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(40, 4, 48)
    by_hand = patches @ (expand.weight @ reduce.weight).T + expand.bias
    torch.testing.assert_close(low.embed(x), by_hand, rtol=1e-12, atol=1e-12)
    assert reduce.bias is None

    def rank(model: DiT) -> int:
        tokens = model.embed(x).flatten(0, 1)
        return int(torch.linalg.matrix_rank(tokens - tokens.mean(0), rtol=1e-9))

    assert (rank(low), rank(direct)) == (3, 24)


def test_a_low_rank_patch_embedding_starts_as_a_linear_layer_does(make: Any) -> None:
    values = dict(make(raw_start=True, patch=4, width=24, patch_rank=3).named_parameters())
    assert not values["patch.expand.bias"].any()
    for name in ("patch.reduce.weight", "patch.expand.weight"):
        bound = (6 / sum(values[name].shape)) ** 0.5
        assert 0.8 * bound < values[name].abs().max() <= bound


# Starting values


def test_blocks_are_initialized_as_identity_with_zero_output(make: Any, given: dict[str, Tensor]) -> None:
    model = make(raw_start=True, cls_token=True, decoder={"depth": 2, "width": 12, "heads": 3}, fill="learned")
    raw, _, taps = model(**given, taps=("encoder", "decoder"))
    assert raw.abs().max() == 0
    assert torch.equal(taps["encoder"].patch, model.patch(patchify(given["x"], GRID)) + model.positions.table)
    assert torch.equal(taps["decoder"].patch, model.decoder_input.positions.table.expand(B, -1, -1))


def test_initial_values_by_kind(make: Any) -> None:
    sizes = {"depth": 1, "width": 64, "heads": 2}
    decoder = {"depth": 1, "width": 32, "heads": 2}
    model = make(raw_start=True, **sizes, num_classes=50, cls_token=True, decoder=decoder, fill="learned")
    values = dict(model.named_parameters())
    zero = {name for name, value in values.items() if not value.any()}
    bridge = {"decoder_input.bridge.linear.weight"}
    gates = {n for n in values if "modulation" in n or n.startswith("final.")}
    assert zero == {n for n in values if n.endswith("bias")} | bridge | gates
    for name in ("timestep.hidden.weight", "timestep.out.weight", "label.weight"):
        assert values[name].std().item() == pytest.approx(0.02, rel=0.1)
    assert 0 < values["cls_token"].abs().max() < 0.1
    assert 0 < values["decoder_input.mask_token"].abs().max() < 0.1
    for name in ("patch.weight", "blocks.0.attention.qkv.weight", "blocks.1.mlp.down.weight"):
        bound = (6 / sum(values[name].shape)) ** 0.5
        assert 0.9 * bound < values[name].abs().max() <= bound
    xavier = make(raw_start=True, **sizes, decoder={**decoder, "bridge_init": "xavier"})
    assert xavier.decoder_input.bridge.linear.weight.any()
    assert not xavier.decoder_input.bridge.modulation.weight.any()


def test_initial_values_depend_only_on_name_and_generator(make: Any) -> None:
    def start(model: DiT, seed: int) -> dict[str, Tensor]:
        for name, parameter in model.named_parameters():
            model.init_parameter(name, parameter, torch.Generator().manual_seed(seed + len(name)))
        return model.state_dict()

    plain, masked = start(make(), 1), start(make(decoder={"depth": 1, "width": 12, "heads": 3}), 1)
    shared = [name for name in plain if not name.startswith("final")]
    assert all(torch.equal(plain[name], masked[name]) for name in shared)
    assert not torch.equal(start(make(), 2)["patch.weight"], plain["patch.weight"])
