"""Define the monitors of the discrimination loss: signs of collapse and of a shortcut through labels.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sddit.interfaces import Monitor

SHORTCUT = (
    Monitor("kl_within", "KL of class assignments within a class", "well above 0, below kl_between", low=0.01),
    Monitor("kl_between", "KL of class assignments between classes", "above 0", low=0.01),
)


def monitors_of(kind: str, prototypes: int, *, has_center: bool) -> Iterable[Monitor]:
    """Yield the monitors of one kind of token, `cls` or `patch`. ln K is the entropy of a uniform assignment."""
    max_entropy = math.log(prototypes)
    tokens = {"cls": "class token", "patch": "patch tokens"}[kind]
    yield Monitor(
        f"{kind}_loss",
        f"Cross-entropy, {tokens}",
        "a plateau at ln K early on, then a fall; a later slow rise for patch tokens is normal",
        reference=max_entropy,
    )
    yield Monitor(
        f"{kind}_entropy",
        f"Entropy of the teacher's assignments, {tokens}",
        "falling from ln K (uniform) to sharp; near 0 is not a collapse as long as the mean assignment stays wide",
        high=0.99 * max_entropy,
        reference=max_entropy,
    )
    yield Monitor(
        f"{kind}_kl_uniform",
        f"KL of the mean assignment to uniform, {tokens}",
        "steady or slowly falling; ln K means that one prototype takes all",
        high=0.9 * max_entropy,
        reference=max_entropy,
    )
    for network in ("teacher", "student"):
        yield Monitor(
            f"{kind}_used_{network}",
            f"Fraction of prototypes used by the {network} in a batch, {tokens}",
            "a growing fraction",
            low=4 / prototypes,
        )
    yield Monitor(
        f"{kind}_logit_std", f"Standard deviation of the teacher's logits, {tokens}", "bounded, no drift", low=1e-4
    )
    if has_center:
        yield Monitor(f"{kind}_center_norm", f"Norm of the center, {tokens}", "bounded, no drift")
