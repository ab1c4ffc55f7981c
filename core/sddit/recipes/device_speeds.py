"""Estimate how long a run takes on named devices, from what their vendor states. Nothing is measured. Torch-free.

Peaks are those of dense matrix products: where a data sheet states bf16 with sparsity, half of it. fp32 is computed
without TF32. For a CPU, or any device that is there, `sddit-run bench` measures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sddit.errors import nearest
from sddit.recipes.settings import Precision

FRACTION = 0.4
"""Fraction of the stated peak that an estimate assumes."""


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """What the vendor of a device states."""

    name: str
    memory: float  # bytes
    peak: Mapping[Precision, float]  # FLOP/s by precision


DEVICES = {
    device.name.casefold(): device
    for device in (
        # NVIDIA A100 Tensor Core GPU data sheet, A100 80GB SXM: 312 and 19.5 TFLOPS.
        DeviceModel("A100", 80e9, {"bf16": 312e12, "fp32": 19.5e12}),
        # NVIDIA H100 Tensor Core GPU data sheet, H100 SXM: 1,979 TFLOPS with sparsity, and 67.
        DeviceModel("H100", 80e9, {"bf16": 989e12, "fp32": 67e12}),
        # NVIDIA H200 Tensor Core GPU data sheet, H200 SXM: as the H100, with 141 GB.
        DeviceModel("H200", 141e9, {"bf16": 989e12, "fp32": 67e12}),
        # NVIDIA Ada GPU Architecture, appendix A, GeForce RTX 4090: 165.2 TFLOPS accumulated in fp32, and 82.6.
        DeviceModel("RTX4090", 24e9, {"bf16": 165.2e12, "fp32": 82.6e12}),
    )
}


@dataclass(frozen=True, slots=True)
class Devices:
    """Some devices of one model, each with a process."""

    count: int
    model: DeviceModel

    def __str__(self) -> str:
        return f"{self.count} x {self.model.name}"

    def seconds(self, flops: float | None, precision: Precision) -> float | None:
        """Return how long FLOPs take at `FRACTION` of the peak of all devices; None: not known."""
        peak = self.model.peak.get(precision)
        return None if flops is None or peak is None else flops / (FRACTION * peak * self.count)


def parse_devices(text: str) -> Devices:
    """Return the devices that `8xH100` or `H100` names. Raises ValueError for other text."""
    found = re.fullmatch(r"(?:([1-9][0-9]{0,4}) ?x ?)?(\S+)", text.strip(), re.IGNORECASE)
    model = DEVICES.get(found[2].casefold()) if found else None
    if not found or model is None:
        names = [device.name for device in DEVICES.values()]
        near = nearest(found[2] if found else text, names)
        meant = f"; did you mean {near}?" if near else ""
        raise ValueError(f"{text!r} is not one of {', '.join(names)}, with a number such as 8x before it{meant}")
    return Devices(int(found[1] or 1), model)
