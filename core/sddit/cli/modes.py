"""Offer the options of the modes of feature extractors on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import click

from sddit.cli.options import PathOption, SdditCommand
from sddit.cli.output import notice
from sddit.errors import error
from sddit.interfaces import EvaluateMode, FeatureParams, ModeOption
from sddit.plugins.host import host, registry

MODE_OPTIONS = "sddit.mode_options"


class ModeCommand(SdditCommand):
    """A command with the options of the modes that the loaded feature extractors offer."""

    def options_of(self, mode: EvaluateMode) -> tuple[ModeOption, ...]:
        """Return the options of a mode that this command has."""
        return mode.options

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Load the plugins of `--plugin` first: their extractors may add options."""
        host().announce = notice
        for given in plugins_in(args):
            host().use_given(given, where="command line")
        options = {option.name: option for mode in self.modes() for option in self.options_of(mode)}
        ctx.meta[MODE_OPTIONS] = [
            click.Option([flag(name)], type=PathOption(), metavar=option.metavar, help=option.help)
            for name, option in options.items()
        ]
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *own, help_option = super().get_params(ctx)
        return [*own, *ctx.meta.get(MODE_OPTIONS, ()), help_option]

    def modes(self) -> list[EvaluateMode]:
        """Return the modes of all loaded extractors that have options of this command.

        Raises SD-P202 for a name in use by its own options or another mode.
        """
        taken = {parameter.name: f"sddit-run {self.name}" for parameter in self.params}
        found = []
        for component in registry("features"):
            offered = component.params.evaluate_modes() if issubclass(component.params, FeatureParams) else ()
            for mode in offered:
                options = self.options_of(mode)
                for name in (mode.name, *(option.name for option in options)) if options else ():
                    if (holder := taken.setdefault(name, component.qualified)) != component.qualified:
                        raise error(
                            "SD-P202",
                            f"evaluate mode or option {name!r} is offered more than once",
                            where=component.qualified,
                            got=f"also offered by {holder}",
                            fix="rename it in the plugin",
                        )
                found += [mode] if options else []
        return found

    def chosen_modes(self, paths: Mapping[str, Path | None]) -> list[tuple[EvaluateMode, dict[str, Path]]]:
        """Return the modes whose options are given, with their paths.

        Raises click.UsageError if only some options of a mode are.
        """
        found = []
        for mode in self.modes():
            options = self.options_of(mode)
            given = {option.name: path for option in options if (path := paths[option.name]) is not None}
            if len(given) == len(options):
                found.append((mode, given))
            elif given:
                names = " and ".join(flag(option.name) for option in options)
                raise click.UsageError(f"{names} must be used together")
        return found


def flag(name: str) -> str:
    """Return `--weights-file` for `weights_file`."""
    return f"--{name.replace('_', '-')}"


def plugins_in(args: Sequence[str]) -> list[str]:
    """Return the values of `--plugin` in a command line that is not parsed yet."""
    separate = [value for option, value in pairwise(args) if option == "--plugin"]
    return separate + [word.partition("=")[2] for word in args if word.startswith("--plugin=")]
