"""A network that adds a bias to its attention trains only with a kernel that serves one."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sddit import hookimpl
from sddit.errors import Problem, SdditError
from sddit.plugins.host import Host
from sddit.recipes.resolve import resolve
from sddit.testing import TOY_RECIPE, toy_host
from sddit.testing.toys.params import ToyAttentionParams, ToyBackboneParams


class BiasedParams(ToyBackboneParams):
    """A toy that says it adds a bias."""

    @property
    def needs_bias(self) -> bool:
        return True


class PlainKernelParams(ToyAttentionParams):
    """A kernel that serves none."""

    @property
    def takes_bias(self) -> bool:
        return False


@pytest.fixture
def host() -> Host:
    """Toys, with a backbone `biased` and a kernel `plain`."""
    plugin: Any = types.ModuleType("biased")

    @hookimpl
    def register_backbones(registry: Any) -> None:
        registry.add("biased", "sddit.testing.toys.network:ToyBackbone", params=BiasedParams, summary="For a test.")

    @hookimpl
    def register_attention(registry: Any) -> None:
        registry.add(
            "plain", "sddit.testing.toys.network:ToyAttention", params=PlainKernelParams, summary="For a test."
        )

    plugin.register_backbones, plugin.register_attention = register_backbones, register_attention
    made = toy_host()
    made.add("biased", plugin)
    return made


@pytest.fixture
def problems(host: Host, tmp_path: Path) -> Callable[..., list[Problem]]:
    """`problems(backbone, kernel)`: what is wrong with the toy recipe with these two."""

    def of(backbone: str, kernel: str) -> list[Problem]:
        text = TOY_RECIPE.replace('[backbone]\nname = "toy"', f'[backbone]\nname = "{backbone}"')
        text = text.replace('[attention]\nname = "toy"', f'[attention]\nname = "{kernel}"')
        file = tmp_path / "toy.toml"
        file.write_text(text, encoding="utf-8")
        try:
            resolve(file, host=host)
        except SdditError as refusal:
            return list(refusal.problems)
        return []

    return of


def test_a_kernel_without_a_bias_is_refused_where_one_is_needed(problems: Callable[..., list[Problem]]) -> None:
    (problem,) = problems("biased", "plain")
    assert (problem.code, problem.got) == ("SD-R108", "plain")
    assert "(attention.name)" in problem.where
    assert problem.what == "backbone 'biased' adds a bias to its attention, which kernel 'plain' does not support"
    assert problem.expect == "one of toy"


@pytest.mark.parametrize(("backbone", "kernel"), [("biased", "toy"), ("toy", "plain"), ("toy", "toy")])
def test_every_other_pair_is_allowed(problems: Callable[..., list[Problem]], backbone: str, kernel: str) -> None:
    assert problems(backbone, kernel) == []
