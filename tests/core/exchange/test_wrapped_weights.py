"""Weights under the names of wrappers, in several sets, and of any number type: read exactly, or refused by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sddit
from sddit.errors import SdditError
from sddit.exchange.importing import Imported, import_weights
from sddit.exchange.number_types import READ, WIDENED, exact_floats, spacing
from sddit.exchange.wrappers import find_network
from sddit.plugins.host import Host

State = dict[str, Tensor]
MakeState = Callable[..., State]
PREFIXES = ("module.", "_orig_mod.", "model.", "ema_model.")


def brought_in(tmp_path: Path, content: Mapping[str, Any], **more: Any) -> Imported:
    """Import a state dict, or a nested pickle of state dicts, in the layout `toy`."""
    flat = all(isinstance(value, Tensor) for value in content.values())
    path = tmp_path / ("x.safetensors" if flat else "x.pt")
    if flat:
        save_file(dict(content), path)
    else:
        torch.save(content, path)
    return import_weights(path, layout="toy", out=tmp_path / "runs", trust_pickle=not flat, **more)


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def parameter(imported: Imported, name: str = "cls") -> Tensor:
    return sddit.load(imported.folder).backbone.state_dict()[name]


@pytest.mark.parametrize(
    "prefix", ["".join(order) for size in (1, 2, 3) for order in itertools.product(PREFIXES, repeat=size)][::5]
)
def test_prefixes_are_removed_in_any_order(prefix: str, tmp_path: Path, host: Host, toy_state: MakeState) -> None:
    imported = brought_in(tmp_path, prefixed(toy_state(), prefix))
    assert torch.equal(parameter(imported), toy_state()["net.cls"])
    assert imported.notes == (f"renamed: the prefix {prefix!r} was removed from 15 names",)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_checkpoint_wrapped_module."])
def test_names_of_the_layout_stay_and_wrapped_blocks_are_found(
    wrapper: str, tmp_path: Path, host: Host, toy_state: MakeState
) -> None:
    assert brought_in(tmp_path, toy_state()).notes == ()
    blocks = {name.replace("blocks.0.", f"blocks.0.{wrapper}"): tensor for name, tensor in toy_state().items()}
    imported = brought_in(tmp_path, prefixed(blocks, "module."))
    assert imported.notes[1:] == (f"renamed: wrappers inside 6 names were removed, such as {wrapper!r}",)
    twice = {**toy_state(), **blocks}
    with pytest.raises(SdditError, match=r"SD-C455(.|\n)*two tensors have the name net\.blocks\.0"):
        brought_in(tmp_path, twice)


def test_the_ema_is_taken_of_a_flat_file_with_two_networks(tmp_path: Path, host: Host, toy_state: MakeState) -> None:
    student, average = toy_state(), toy_state(fill=0.2)
    both = {**prefixed(student, "model."), **prefixed(average, "ema_model."), "vae.weight": torch.zeros(2)}
    imported = brought_in(tmp_path, both)
    assert torch.equal(parameter(imported), average["net.cls"])
    assert imported.set_name == "ema_model"
    assert imported.notes[-1] == "dropped: 16 tensors under other names: model, vae"
    assert brought_in(tmp_path, both, weights="ema_model").folder == imported.folder
    chosen = brought_in(tmp_path, both, weights="model")
    assert torch.equal(parameter(chosen), student["net.cls"])
    assert chosen.notes == ("dropped: ema_model, vae",)
    unclear = {**prefixed(student, "student."), **prefixed(average, "teacher.")}
    with pytest.raises(SdditError, match=r"SD-C446(.|\n)*student\., teacher\.(.|\n)*--weights student"):
        brought_in(tmp_path, unclear)
    two_files = {**student, **prefixed(average, "module.")}
    with pytest.raises(SdditError, match=r"SD-C446(.|\n)*names without a prefix"):
        brought_in(tmp_path, two_files)


def test_a_lightning_file_is_read(tmp_path: Path, host: Host, toy_state: MakeState) -> None:
    student, average = toy_state(), toy_state(fill=0.2)
    held = {**prefixed(student, "model._orig_mod."), **prefixed(average, "ema_model.module.")}
    content = {"state_dict": held, "epoch": 3, "global_step": 12, "callbacks": {}}
    imported = brought_in(tmp_path, content)
    assert torch.equal(parameter(imported), average["net.cls"])
    assert (imported.set_name, imported.file.step) == ("state_dict.ema_model", 12)
    assert imported.notes[0] == "dropped: epoch, global_step, callbacks"
    for name in ("state_dict.ema_model", "ema_model"):
        assert brought_in(tmp_path, content, weights=name).folder == imported.folder
    assert torch.equal(parameter(brought_in(tmp_path, content, weights="model")), student["net.cls"])
    nested = {"ema": {"decay": 0.9, "module": average}, "model": {"state_dict": student}}
    assert torch.equal(parameter(brought_in(tmp_path, nested)), average["net.cls"])
    for wrong in ("modle", "epoch"):
        with pytest.raises(SdditError, match=r"SD-C446(.|\n)*--weights state_dict"):
            brought_in(tmp_path, content, weights=wrong)


def test_a_prefix_of_some_names_is_refused(tmp_path: Path, host: Host, toy_state: MakeState) -> None:
    state = toy_state()
    for prefix in ("module.", "_orig_mod.", "model."):
        mixed = {(f"{prefix}{name}" if number % 2 else name): t for number, (name, t) in enumerate(state.items())}
        with pytest.raises(SdditError, match=rf"SD-C459(.|\n)*of 15 names 7 have '{prefix}'; 8 have none"):
            brought_in(tmp_path, mixed)
    mixed = {f"{PREFIXES[number % 2]}{name}": t for number, (name, t) in enumerate(state.items())}
    with pytest.raises(SdditError, match="SD-C459"):
        brought_in(tmp_path, mixed)
    assert not (tmp_path / "runs").exists()


def test_a_file_without_tensors_is_refused(tmp_path: Path, host: Host) -> None:
    for content, word in (({}, "nothing"), ({"model": {}, "step": 3}, r"model \(empty\), step")):
        with pytest.raises(SdditError, match=rf"SD-C460(.|\n)*{word}"):
            brought_in(tmp_path, content)


@pytest.mark.parametrize("dtype", WIDENED, ids=str)
def test_eight_bits_are_converted_exactly(dtype: torch.dtype, tmp_path: Path, host: Host, toy_state: MakeState) -> None:
    bits = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype)
    [values], notes = exact_floats({"x": bits})[0].values(), exact_floats({"x": bits})[1]
    finite = values.isfinite()
    assert values.dtype == torch.float32
    assert torch.equal(values[finite].to(dtype).view(torch.uint8), bits.view(torch.uint8)[finite])
    assert len(notes) == 1
    few = {name: tensor.to(dtype) for name, tensor in toy_state().items()}
    mixed = {**few, "net.cls": toy_state()["net.cls"].to(torch.bfloat16)}
    imported = brought_in(tmp_path, mixed)
    assert torch.equal(parameter(imported, "embed.weight"), few["net.embed.weight"].float())
    name = str(dtype).removeprefix("torch.")
    assert imported.notes == (f"converted: 14 tensors of {name} to float32, exactly",)
    assert torch.equal(parameter(brought_in(tmp_path, {"model": few})), few["net.cls"].float())


@pytest.mark.parametrize("dtype", READ, ids=str)
def test_rounding_is_reported(dtype: torch.dtype, tmp_path: Path, host: Host, toy_state: MakeState) -> None:
    state = {name: tensor.to(dtype) for name, tensor in toy_state().items()}
    imported = brought_in(tmp_path, state)
    assert torch.equal(parameter(imported), state["net.cls"].float())
    expected = ("rounded: 15 tensors of float64 to float32",) if dtype == torch.float64 else ()
    assert imported.notes == expected


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e8m0fnu, torch.complex64],
    ids=str,
)
def test_other_types_are_refused_by_name(dtype: torch.dtype, tmp_path: Path, host: Host, toy_state: MakeState) -> None:
    state = {**toy_state(), "net.cls": toy_state()["net.cls"].to(dtype)}
    name = str(dtype).removeprefix("torch.")
    for content in (state, {"model": state}):
        with pytest.raises(SdditError, match=rf"SD-C458(.|\n)*type {name} (.|\n)*1 of 15 tensors of {name}"):
            brought_in(tmp_path, content)
    assert not (tmp_path / "runs").exists()


def test_values_that_float32_cannot_hold_are_refused(tmp_path: Path, host: Host, toy_state: MakeState) -> None:
    state = {**toy_state(), "net.cls": toy_state()["net.cls"].double() + 1e39}
    with pytest.raises(SdditError, match=r"SD-C458(.|\n)*'cls' is too large for float32"):
        brought_in(tmp_path, state)
    for value in (float("nan"), float("inf")):
        with pytest.raises(SdditError, match="SD-C450"):
            brought_in(tmp_path, {**toy_state(), "net.cls": torch.full((8,), value)})
        if value != value:  # float8_e4m3fn has no infinity
            broken = torch.full((8,), value).to(torch.float8_e4m3fn)
            with pytest.raises(SdditError, match="SD-C450"):
                brought_in(tmp_path, {**toy_state(), "net.cls": broken})


def test_python_reads_mixed_types_in_the_widest(
    tmp_path: Path, host: Host, toy_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sddit.api.KERNEL", "toy")
    state = {name: t.to(torch.float16 if "embed" in name else torch.bfloat16) for name, t in toy_state().items()}
    save_file(prefixed(state, "module.model."), tmp_path / "x.safetensors")
    with pytest.warns(UserWarning, match=r"renamed: the prefix 'module\.model\.' was removed"):
        loaded = sddit.load(tmp_path / "x.safetensors", layout="toy").backbone.state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert torch.equal(loaded["cls"], state["net.cls"].float())
    with pytest.raises(SdditError, match="SD-C446"):
        sddit.load(tmp_path / "x.safetensors", layout="toy", weights="ema")


def test_sets_of_a_flat_file_are_named(tmp_path: Path, host: Host, toy_state: MakeState) -> None:
    content = {**prefixed(toy_state(), "ema."), **prefixed(toy_state(), "model.")}
    with pytest.raises(SdditError, match=r"SD-C446(.|\n)*one of ema, model"):
        brought_in(tmp_path, content, weights="nope")


def test_an_empty_tensor_is_refused(tmp_path: Path, host: Host, toy_state: MakeState) -> None:
    with pytest.raises(SdditError, match=r"SD-C455(.|\n)*a tensor of this file is empty"):
        brought_in(tmp_path, {**toy_state(), "net.cls": torch.ones(0, 8)})


def test_the_spacing_of_a_type_of_8_bits_remains_after_it_is_widened() -> None:
    values = torch.linspace(-1, 1, 101)
    assert spacing(values) == torch.finfo(torch.float32).eps
    assert spacing(values.half()) == torch.finfo(torch.float16).eps
    assert spacing(values.to(torch.float8_e4m3fn).float()) == torch.finfo(torch.float8_e4m3fn).eps


def test_a_layout_that_has_a_prefix_itself_keeps_it() -> None:
    seen: list[list[str]] = []

    def read(state: Mapping[str, Tensor]) -> list[str]:
        seen.append(sorted(state))
        if "model.a" not in state:
            raise KeyError("model.a is missing")
        return sorted(state)

    found = find_network({"module.model.a": torch.zeros(1), "module.model.b": torch.zeros(1)}, read)
    assert found.content == ["model.a", "model.b"]
    assert len(seen) == 2
    with pytest.raises(KeyError, match="missing"):
        find_network({"x.a": torch.zeros(1), "y.b": torch.zeros(1)}, read)
