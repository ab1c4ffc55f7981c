"""`sddit-run import`: weights of a published implementation as a run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sddit.cli.common import LayoutOption, PathOption, SdditCommand, non_empty, notice
from sddit.errors import error
from sddit.exchange.arguments import flatten, merge_tables
from sddit.exchange.layouts import NO_LABEL_DROP
from sddit.plugins.host import host
from sddit.storage.atomic import open_file

if TYPE_CHECKING:
    from sddit.exchange.importing import Imported

EXAMPLES = """
sddit-run import DiT-XL-2-256x256.safetensors --layout dit
sddit-run import maskdit.pt --layout maskdit --weights ema --trust-pickle
sddit-run import weights.safetensors --layout dit --config num_heads=12
sddit-run import weights.safetensors --layout mdtv2 --recipe my.toml
"""
MOST_CONFIG = 2**20  # bytes


@click.command("import", cls=SdditCommand, examples=EXAMPLES)
@click.argument("weights_file", metavar="WEIGHTS", type=PathOption())
@click.option("--layout", cls=LayoutOption, required=True, metavar="NAME", help="Whose names the tensors have.")
@click.option(
    "--config",
    "config",
    multiple=True,
    metavar="FILE|KEY=VALUE",
    help="Arguments of the published constructor that the tensors do not tell, such as num_heads=16. Repeatable.",
)
@click.option(
    "--recipe",
    type=non_empty,
    metavar="RECIPE",
    help="The recipe of these weights; left out: one is made, without data.",
)
@click.option(
    "--weights",
    type=non_empty,
    metavar="NAME",
    help="Which weights of a nested file: ema or model; left out: ema if there.",
)
@click.option(
    "--trust-pickle", is_flag=True, help="Read a .pt file too. It is searched for code first; still, trust its author."
)
@click.option("--out", type=PathOption(), default="runs", show_default=True, help="Folder of run folders.")
def import_weights(
    weights_file: Path,
    layout: str,
    config: tuple[str, ...],
    recipe: str | None,
    weights: str | None,
    trust_pickle: bool,
    out: Path,
) -> None:
    """Turn published weights into a run: to sample, to begin from."""
    given = read_config(config)

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
    say(imported)


def read_config(words: Sequence[str]) -> dict[str, Any]:
    """`config.json` and `num_heads=16` together, the later over the earlier; `model.num_heads=16` reaches into a table."""
    from sddit.recipes.merge import parse_override

    return merge_tables(*(parse_override(word).table if "=" in word else read_file(Path(word)) for word in words))


def read_file(path: Path) -> Mapping[str, Any]:
    try:
        with os.fdopen(open_file(path), "rb") as file:
            value = json.loads(file.read(MOST_CONFIG))
    except (OSError, ValueError, RecursionError) as fault:
        raise error(
            "SD-C454", "the config cannot be read", where=str(path), got=str(fault), expect="JSON, or KEY=VALUE"
        ) from None
    if not isinstance(value, dict):
        raise error("SD-C454", "the config is no table", where=str(path), expect="a JSON object")
    return value


def say(imported: Imported) -> None:
    """What the tensors told, what was guessed, and where the run is."""
    published = imported.converted
    shown = {"from the tensors": flatten(published.inferred), "guessed": flatten(published.guessed)}
    for title, arguments in shown.items():
        if arguments:
            click.echo(f"{title}: {', '.join(f'{key} = {value}' for key, value in arguments.items())}")
    if imported.file.chosen:
        click.echo(f"weights: {imported.file.chosen}, step {imported.file.step}")
    if published.never_drops_labels:
        click.echo(f"note: {NO_LABEL_DROP}")
    click.echo(f"{'imported before' if imported.already else 'run'}: {imported.folder}")
    click.echo(f"next: sddit-run sample {imported.folder}")
