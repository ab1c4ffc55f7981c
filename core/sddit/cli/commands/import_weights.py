"""`sddit-run import`: convert published weights to a run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sddit.cli.options import LayoutOption, PathOption, SdditCommand, non_empty
from sddit.cli.output import echo, notice
from sddit.errors import error
from sddit.exchange.layouts import NO_LABEL_DROP, flatten, merge_tables
from sddit.plugins.host import host
from sddit.storage.atomic import open_file
from sddit.storage.output_folder import verify_file

if TYPE_CHECKING:
    from sddit.exchange.importing import Imported

EXAMPLES = """
sddit-run import DiT-XL-2-256x256.safetensors --layout dit
sddit-run import maskdit.pt --layout maskdit --weights ema --trust-pickle
sddit-run import weights.safetensors --layout dit --config num_heads=12
sddit-run import weights.safetensors --layout mdtv2 --recipe my.toml
"""
MAX_CONFIG = 2**20  # bytes


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
    "--weights", type=non_empty, metavar="NAME", help="Set of weights in a nested file.  [default: ema, else model]"
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

    return merge_tables(*(parse_override(word).table if "=" in word else read_file(Path(word)) for word in words))


def read_file(path: Path) -> Mapping[str, Any]:
    verify_file(path)
    try:
        with os.fdopen(open_file(path), "rb") as file:
            value = json.loads(file.read(MAX_CONFIG))
    except (OSError, ValueError, RecursionError) as fault:
        raise error(
            "SD-C454", "cannot read the config", where=str(path), got=str(fault), expect="JSON, or KEY=VALUE"
        ) from None
    if not isinstance(value, dict):
        raise error("SD-C454", "the config is not a table", where=str(path), expect="a JSON object")
    return value


def print_imported(imported: Imported) -> None:
    """Print which arguments follow from the tensors, which were guessed, and the run folder."""
    converted = imported.converted
    groups = {"from the tensors": flatten(converted.inferred), "guessed": converted.guessed}
    for title, arguments in groups.items():
        if arguments:
            echo(f"{title}: {', '.join(f'{key} = {value}' for key, value in arguments.items())}")
    if imported.file.set_name:
        echo(f"weights: {imported.file.set_name}, step {imported.file.step}")
    if converted.never_drops_labels:
        echo(f"note: {NO_LABEL_DROP}")
    echo(f"{'already imported' if imported.existed else 'run'}: {imported.folder}")
    echo(f"next: sddit-run sample {imported.folder}")
