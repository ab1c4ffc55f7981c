"""`--layout`, whose help names the layouts that there are."""

from __future__ import annotations

import click

from sddit.exchange.layouts import OURS, known_layouts


class LayoutOption(click.Option):
    """Its help ends with the published layouts of the plugins, which are looked for once somebody asks."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        if (record := super().get_help_record(ctx)) is None:
            return None
        flags, text = record
        return flags, f"{text}  Published: {', '.join(name for name in known_layouts() if name != OURS)}."
