"""`sddit-run import`: convert published weights to a run folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sddit.cli.options import LayoutOption, PathOption, SdditCommand, non_empty
from sddit.cli.output import echo, notice
from sddit.exchange.layouts import merge_tables, read_config_file
from sddit.plugins.host import host

if TYPE_CHECKING:
    from sddit.exchange.importing import Imported

EXAMPLES = """
sddit-run import DiT-XL-2-256x256.safetensors --layout dit
sddit-run import maskdit.pt --layout maskdit --weights ema --trust-pickle
sddit-run import weights.safetensors --layout dit --config num_heads=12
sddit-run import weights.safetensors --layout mdtv2 --recipe my.toml
sddit-run import DiT-XL-2-256/transformer --layout diffusers
"""


@click.command("import", cls=SdditCommand, examples=EXAMPLES)
@click.argument("weights_file", metavar="WEIGHTS", type=PathOption())
@click.option("--layout", cls=LayoutOption, required=True, metavar="NAME", help="Published layout of the tensor names.")
@click.option(
    "--config",
    multiple=True,
    metavar="FILE|KEY=VALUE",
    help="Arguments of the published constructor that do not follow from the tensors, e.g. num_heads=16. Repeatable.",
)
@click.option(
    "--recipe", type=non_empty, metavar="RECIPE", help="Recipe of these weights.  [default: a new one, without data]"
)
@click.option(
    "--weights",
    type=non_empty,
    metavar="NAME",
    help="Set of weights, or the prefix of their names.  [default: ema, else model]",
)
@click.option(
    "--trust-pickle",
    is_flag=True,
    help="Allow a .pt file. It is scanned for code first, but only use files whose author you trust.",
)
@click.option("--out", type=PathOption(), metavar="DIR", default="runs", help="Parent folder of run folders.")
def import_weights(
    weights_file: Path,
    layout: str,
    config: tuple[str, ...],
    recipe: str | None,
    weights: str | None,
    trust_pickle: bool,
    out: Path,
) -> None:
    """Convert published weights to a run, to sample or to start from."""
    given = read_config(config)  # before torch is imported
    from sddit.exchange.importing import import_weights as start
    from sddit.recipes.resolve import resolve

    host().announce = notice
    imported = start(
        weights_file,
        layout=layout,
        out=out,
        config=given,
        recipe=resolve(recipe) if recipe is not None else None,
        weights=weights or "",
        trust_pickle=trust_pickle,
    )
    print_imported(imported)


def read_config(words: Sequence[str]) -> dict[str, Any]:
    """Merge JSON files and `key=value` words, later ones win. `model.num_heads=16` sets a key inside a table."""
    from sddit.recipes.merge import parse_override

    return merge_tables(
        *(parse_override(word).table if "=" in word else read_config_file(Path(word)) for word in words)
    )


def print_imported(imported: Imported) -> None:
    """Print which arguments follow from the tensors, which were guessed, what was changed, and the run folder."""
    converted = imported.converted
    for line in converted.lines(imported.notes):
        echo(line)
    if imported.set_name:
        echo(f"weights: {imported.set_name}, step {imported.file.step}")
    echo(f"{'already imported' if imported.existed else 'run'}: {imported.folder}")
    echo(f"next: sddit-run sample {shlex.quote(str(imported.folder))}")
