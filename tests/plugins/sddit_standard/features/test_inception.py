"""Test the Inception network by its parts, and the files that it accepts and refuses.

Its figures need weights that are not here.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sddit.errors import SdditError
from sddit.evaluation.metrics import frechet_distance, inception_score, precision_recall
from sddit.evaluation.scoring import run_mode
from sddit.progress import Progress
from sddit_standard.features import adm
from sddit_standard.features.adm import Observed, Reference, adm_scores, read_reference
from sddit_standard.features.inception import (
    CLASSES,
    Convolution,
    Inception,
    Mixed,
    Seen,
    load_inception,
    look,
    prepared,
)
from sddit_standard.features.params import ADM_MODE

CPU = torch.device("cpu")


def small_start(network: nn.Module) -> nn.Module:
    """Weights at which every block passes something on."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                scale = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network() -> Inception:
    made = small_start(Inception())
    assert isinstance(made, Inception)
    return made


def drawn(count: int, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_names_and_shapes_are_those_of_the_file(network: Inception) -> None:
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if "tracked" not in name}
    assert len(shapes) == 94 * 5 + 2  # convolutions with their batch norms, and the classifier
    assert (
        sum(p.numel() for p in network.parameters()) == 23_850_960
    )  # Inception-v3 without its auxiliary head, 1008 classes
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6c.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }.items():
        assert shapes[name] == shape, name
    assert {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


def test_what_it_sees_has_the_right_form(network: Inception) -> None:
    images = drawn(2)
    middle: list[Tensor] = []
    hook = network.Mixed_6d.register_forward_hook(lambda *given: middle.append(given[2]))
    seen = look(network, images, CPU)
    hook.remove()
    assert [tuple(part.shape) for part in seen] == [(2, 2048), (2, 2023), (2, CLASSES)]
    assert seen.classes.sum(dim=1) == pytest.approx(torch.ones(2))
    assert middle[0].shape == (2, 768, 17, 17)
    places = seen.spatial.view(2, 17, 17, 7)
    assert torch.equal(places[1, 4, 9], middle[0][1, :7, 4, 9])
    assert torch.equal(middle[0][:, :192], network.Mixed_6d.branch1x1(_before(network, images)))
    again = look(network, images, CPU)
    assert all(torch.equal(one, other) for one, other in zip(seen, again, strict=True))
    assert not torch.equal(look(network, images.flip(0), CPU).pooled, seen.pooled)
    logits = F.linear(seen.pooled, network.fc.weight)
    assert seen.classes == pytest.approx(logits.softmax(dim=1), abs=1e-6)  # without the bias


@torch.no_grad()
def _before(network: Inception, images: Tensor) -> Tensor:
    """Return the input of Mixed_6d."""
    inputs: list[Tensor] = []
    hook = network.Mixed_6d.register_forward_pre_hook(lambda *given: inputs.append(given[1][0]))
    look(network, images, CPU)
    hook.remove()
    return inputs[0]


def test_average_pools_leave_the_padding_out_and_the_last_pool_takes_the_maximum() -> None:
    x = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    mean, peak = Mixed(4, {"branch1x1": (2, 1)}, pool=3), Mixed(4, {"branch1x1": (2, 1)}, pool=3, peak=True)
    corner = x[..., :2, :2]

    def pool_of(block: Mixed) -> Tensor:
        block.branch_pool = Convolution(4, 4, 1).eval()
        block.branch_pool.conv.weight.data.copy_(torch.eye(4)[:, :, None, None])
        return block.eval()(x)[0, 2:, 0, 0].detach() * (1 + 1e-3) ** 0.5  # undo the batch norm

    assert pool_of(mean) == pytest.approx(corner.mean(dim=(2, 3))[0], rel=1e-5)
    assert pool_of(peak) == pytest.approx(corner.amax(dim=(2, 3))[0], rel=1e-5)


def test_a_block_that_halves_strides_at_the_end_of_each_branch() -> None:
    block = Mixed(4, {"branch3x3_1": (2, 1), "branch3x3_2": (3, 3)}).eval()
    assert block(torch.rand(1, 4, 9, 9)).shape == (1, 3 + 4, 4, 4)
    assert block.branch3x3_1.conv.stride == (1, 1)
    assert block.branch3x3_2.conv.stride == (2, 2)


def test_images_are_resized_from_the_corner() -> None:
    assert torch.equal(prepared(torch.full((1, 3, 8, 5), 64, dtype=torch.uint8)), torch.full((1, 3, 299, 299), -0.5))
    same = drawn(1, 299)
    assert torch.equal(prepared(same), (same.float() - 128) / 128)
    ramp = torch.arange(100, dtype=torch.uint8).expand(1, 3, 100, 100)
    at = (torch.arange(299) * (100 / 299)).clamp(max=99)  # no half pixel, and the last column stays
    assert 128 * prepared(ramp)[0, 0, 7] + 128 == pytest.approx(at, abs=1e-4)
    assert 128 * prepared(ramp.transpose(2, 3))[0, 2, :, 50] + 128 == pytest.approx(at, abs=1e-4)
    usual = F.interpolate(ramp.float(), (299, 299), mode="bilinear", align_corners=False)
    assert usual[0, 0, 7] != pytest.approx(at, abs=0.1)


def state_of(network: Inception) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if "tracked" not in name}


def test_weights_are_loaded_from_both_kinds_of_file(network: Inception, tmp_path: Path) -> None:
    torch.save(state_of(network), tmp_path / "weights.pth")
    save_file({name: value.half() for name, value in state_of(network).items()}, tmp_path / "weights.safetensors")
    loaded, digest = load_inception(tmp_path / "weights.pth", CPU)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert len(digest) == 64
    assert not loaded.training
    halves, other = load_inception(tmp_path / "weights.safetensors", CPU)
    assert halves.fc.weight.dtype == torch.float32
    assert torch.equal(halves.fc.weight, network.fc.weight.half().float())
    assert other != digest


class Hostile:
    """Runs when it is unpickled by a loader that runs code."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return (pytest.fail, ("code of the file was run",))


def without(network: Inception, name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state_of(network).items() if key != name}


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda network: without(network, "fc.bias"), "no fc.bias"),
        (lambda network: state_of(network) | {"fc.weight": torch.zeros(1000, 2048)}, "fc.weight (1000, 2048)"),
        (lambda network: state_of(network) | {"AuxLogits.fc.bias": torch.zeros(2)}, "AuxLogits.fc.bias (2,)"),
        (lambda network: [1, 2], "something else"),
        (lambda network: {"fc.weight": "text"}, "something else"),
        (lambda network: Hostile(), "holds no weights"),
    ],
)
def test_other_weights_are_refused(
    make: Callable[[Inception], object], got: str, network: Inception, tmp_path: Path
) -> None:
    torch.save(make(network), tmp_path / "weights.pth")
    with pytest.raises(SdditError, match="SD-T940") as refused:
        load_inception(tmp_path / "weights.pth", CPU)
    assert got in refused.value.problems[0].got


def test_programs_and_other_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
        archive.writestr("archive/data.pkl", b"")
    (tmp_path / "text.pth").write_text("not weights", encoding="utf-8")
    (tmp_path / "text.safetensors").write_text("not weights", encoding="utf-8")
    for name, got in {
        "script.pt": "TorchScript",
        "text.pth": "no weights",
        "text.safetensors": "no weights",
        "nothing.pth": "No such file",
    }.items():
        with pytest.raises(SdditError, match="SD-T940") as refused:
            load_inception(tmp_path / name, CPU)
        assert got in refused.value.problems[0].got, name


def made_up(seed: int, n: int = 60) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    pooled, spatial, logits = (torch.randn(n, d, generator=generator) for d in (5, 4, 7))
    return Seen(pooled, spatial, logits.softmax(dim=1))


def observed(seen: Seen, *cuts: int) -> Observed:
    """Return what is kept of outputs that are given in the parts between the cuts."""
    found = Observed(keep_vectors=True)
    for start, stop in pairwise((0, *cuts, len(seen.pooled))):
        found.add(Seen(*(column[start:stop] for column in seen)))
    return found


def test_outputs_in_parts_give_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adm, "PART", 25)
    seen = made_up(0)
    whole, parts, fewer = observed(seen), observed(seen, 1, 30, 31), observed(Seen(*(x[1:] for x in seen)))
    for name in ("pooled", "spatial"):
        for one, other, less in zip(getattr(whole, name), getattr(parts, name), getattr(fewer, name), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)
            assert not np.allclose(one, less)
    expected = inception_score(seen.classes, 25).mean()
    assert whole.inception_score == pytest.approx(expected, rel=1e-12)
    assert parts.inception_score == pytest.approx(expected, rel=1e-12)
    assert fewer.inception_score != pytest.approx(expected, rel=1e-12)
    assert np.array_equal(parts.vectors, seen.pooled)


def test_figures_against_images_and_against_statistics() -> None:
    fake, real = made_up(0), made_up(1)
    seen, held = observed(fake), observed(real)
    by_images = adm_scores(seen, Reference(None, None, None), held, name="r.npz", digest="0")
    assert by_images.fid == pytest.approx(frechet_distance(fake.pooled, real.pooled), rel=1e-9)
    assert by_images.sfid == pytest.approx(frechet_distance(fake.spatial, real.spatial), rel=1e-9)
    assert (by_images.precision, by_images.recall) == precision_recall(real.pooled, fake.pooled, 3)
    assert by_images.inception_score == pytest.approx(float(inception_score(fake.classes, 60)[0]))
    statistics = Reference(held.pooled, held.spatial, None)
    by_numbers = adm_scores(seen, statistics, None, name="r.npz", digest="0")
    assert (by_numbers.fid, by_numbers.sfid) == (by_images.fid, by_images.sfid)
    assert by_numbers.precision is by_numbers.recall is None
    pooled_only = adm_scores(seen, Reference(held.pooled, None, None), None, name="r.npz", digest="0")
    assert (pooled_only.fid, pooled_only.sfid) == (by_images.fid, None)
    assert adm_scores(held, statistics, None, name="r.npz", digest="0").fid == pytest.approx(0, abs=1e-9)


def test_a_reference_batch_is_read(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images)
    found = read_reference(tmp_path / "images.npz")
    assert found.pooled is found.spatial is None
    assert found.images is not None
    assert found.images.shape == (4, 8, 8, 3)
    eye = np.eye(2048, dtype=np.float32)
    np.savez(tmp_path / "numbers.npz", mu=eye[0], sigma=eye, mu_s=np.zeros(2023), sigma_s=np.eye(2023))
    found = read_reference(tmp_path / "numbers.npz")
    assert found.images is None
    assert found.pooled is not None
    assert found.pooled[1].dtype == np.float64
    assert found.spatial is not None


@pytest.mark.parametrize(
    ("arrays", "got"),
    [
        ({"mu": np.zeros(64), "sigma": np.eye(64)}, "mu (64,)"),
        ({"mu": np.zeros(2048)}, "mu or sigma without the other"),
        ({"other": np.zeros(3)}, "other arrays"),
        ({"arr_0": np.zeros((2, 3, 8, 8), dtype=np.uint8)}, "arr_0 uint8 (2, 3, 8, 8)"),
        ({"arr_0": np.zeros((2, 8, 8, 3))}, "arr_0 float64"),
        ({"arr_0": np.array([{}], dtype=object)}, "pickle"),
        ({"arr_0": np.zeros((0, 8, 8, 3), dtype=np.uint8)}, "0 images in arr_0"),
        ({"arr_0": np.zeros((1, 8, 8, 3), dtype=np.uint8)}, "1 images in arr_0"),
        (
            {"mu": np.where(np.arange(2048) == 3, np.nan, 0.0), "sigma": np.eye(2048)},
            "a mean with 1 of 2048 values NaN",
        ),
        ({"mu": np.zeros(2048), "sigma": np.where(np.eye(2048) > 0, np.inf, 0.0)}, "a covariance with 2048 of"),
        ({"mu": np.zeros(2048), "sigma": -np.eye(2048)}, "a negative variance"),
        ({"mu": np.zeros(2048), "sigma": np.tri(2048)}, "not symmetric"),
        (None, "No such file"),
        (b"text", ""),
    ],
)
def test_what_is_not_a_reference_is_refused(
    arrays: dict[str, np.ndarray] | bytes | None, got: str, tmp_path: Path
) -> None:
    path = tmp_path / "reference.npz"
    if isinstance(arrays, dict):
        np.savez(path, **arrays)  # type: ignore[arg-type]
    elif arrays is not None:
        path.write_bytes(arrays)
    with pytest.raises(SdditError, match="SD-T941") as refused:
        read_reference(path)
    assert got in refused.value.problems[0].got


def test_a_run_is_scored_by_the_files_of_its_user(
    network: Inception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=drawn(9).permute(0, 2, 3, 1).numpy())
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/samples.npz").write_bytes(buffer.getvalue())
    np.savez(tmp_path / "reference.npz", arr_0=drawn(7).permute(0, 2, 3, 1).numpy())
    torch.save(state_of(network), tmp_path / "weights.pth")
    looked: list[int] = []

    def glance(_: Inception, images: Tensor, device: torch.device) -> Seen:
        looked.append(len(images))
        return made_up(len(images), len(images))

    monkeypatch.setattr(adm, "look", glance)
    monkeypatch.setattr(adm, "BATCH", 5)
    paths = {"inception": tmp_path / "weights.pth", "reference": tmp_path / "reference.npz"}
    found = run_mode(tmp_path, ADM_MODE, paths=paths, device="cpu", progress=Progress())
    assert looked == [5, 4, 5, 2]
    assert found["samples"] == 9
    assert found["reference"] == "reference.npz"
    assert json.loads((tmp_path / "adm.json").read_text()) == found
