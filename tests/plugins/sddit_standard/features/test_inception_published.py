"""Compare the Inception network with outputs of published implementations under made-up weights."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from sddit.interfaces import CheckContext, CheckSkipped
from sddit.verify.published import Stored, folders, published
from sddit_standard import checks
from sddit_standard.checks import FLOAT32, inception_outputs, inception_weights, made_up_images, relative_to_mean
from sddit_standard.features import inception
from sddit_standard.features.inception import Inception, load_inception, look

SIZE = "48x80"
CONTROLS: dict[str, Callable[[pytest.MonkeyPatch, Inception], None]] = {}
"""Mistakes that other ports of the network have made."""


def control(function: Callable[[pytest.MonkeyPatch, Inception], None]) -> None:
    CONTROLS[function.__name__] = function


@control
def count_the_padding(patch: pytest.MonkeyPatch, network: Inception) -> None:
    original = F.avg_pool2d
    patch.setattr(
        F, "avg_pool2d", lambda x, *given, **named: original(x, *given, **named | {"count_include_pad": True})
    )


@control
def average_in_the_last_block(patch: pytest.MonkeyPatch, network: Inception) -> None:
    patch.setattr(network.Mixed_7c, "peak", False)


@control
def resize_with_half_a_pixel(patch: pytest.MonkeyPatch, network: Inception) -> None:
    def resized(images: Tensor, dtype: torch.dtype) -> Tensor:
        return (F.interpolate(images.to(dtype), (299, 299), mode="bilinear", align_corners=False) - 128) / 128

    patch.setattr(inception, "prepared", resized)


@control
def scale_to_minus_one_and_one(patch: pytest.MonkeyPatch, network: Inception) -> None:
    original = inception.prepared
    patch.setattr(inception, "prepared", lambda *given: (128 * original(*given) + 0.5) / 127.5)


@pytest.fixture(scope="module")
def stored() -> Stored:
    try:
        return published(CheckContext(fixtures=folders(None)), "inception_a")
    except CheckSkipped as absent:
        pytest.skip(str(absent))


@pytest.fixture(scope="module")
def network(stored: Stored, tmp_path_factory: pytest.TempPathFactory) -> Inception:
    """Return the network as a user loads it: from a file."""
    file = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file(inception_weights(stored.meta) | {name: value.float() for name, value in stored.state.items()}, file)
    return load_inception(file, torch.device("cpu"))[0]


def differences(network: Inception, stored: Stored, size: str, count: int | None = None) -> dict[str, float]:
    group = next(group for group in stored.meta["groups"] if group["name"] == size)
    ours = inception_outputs(network, made_up_images(group)[:count], size)
    return {name: relative_to_mean(value.double(), stored.outputs[name][:count]) for name, value in ours.items()}


def test_weights_and_images_are_drawn_as_they_were(stored: Stored) -> None:
    digest = sha256()
    for tensor in inception_weights(stored.meta).values():
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == stored.meta["weights"]["sha256"]
    for group in (*stored.meta["groups"], *stored.meta["sets"].values()):
        assert sha256(made_up_images(group).numpy().tobytes()).hexdigest() == group["sha256"]


def test_outputs_are_the_published_ones(network: Inception, stored: Stored) -> None:
    found = differences(network, stored, SIZE)
    assert len(found) == 3
    assert max(found.values()) < FLOAT32, found


@pytest.mark.slow
def test_outputs_are_the_published_ones_at_every_size(stored: Stored) -> None:
    context = CheckContext(fixtures=folders(None), full=True)
    rows = list(checks.published_inception(context))
    assert len(rows) == 6 * len(stored.meta["groups"])
    assert [row for row in rows if not row.holds] == []


@pytest.mark.parametrize("mistake", CONTROLS)
def test_a_mistake_is_detected(
    mistake: str, network: Inception, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert differences(network, stored, SIZE, count=1)[f"{SIZE}/pooled"] < FLOAT32
    CONTROLS[mistake](monkeypatch, network)
    assert differences(network, stored, SIZE, count=1)[f"{SIZE}/pooled"] > 50 * FLOAT32


def test_products_are_not_rounded_on_a_gpu(monkeypatch: pytest.MonkeyPatch, network: Inception) -> None:
    """By default, cuDNN computes float32 convolutions with factors of 11 bits (TF32)."""
    settings, original = (torch.backends.cudnn, torch.backends.cuda.matmul), inception.prepared
    seen: list[list[bool]] = []

    def noted(images: Tensor, dtype: torch.dtype) -> Tensor:
        seen.append([setting.allow_tf32 for setting in settings])
        return original(images, dtype)

    monkeypatch.setattr(inception, "prepared", noted)
    before = [setting.allow_tf32 for setting in settings]
    assert True in before  # torch's default
    look(network, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.device("cpu"))
    assert seen == [[False, False]]
    assert [setting.allow_tf32 for setting in settings] == before
