"""Define the options that commands share, and hold those of `sddit-run RECIPE`."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sddit.cli.output import current_state
from sddit.distributed import processes
from sddit.errors import expand_user
from sddit.exchange.layouts import layouts

if TYPE_CHECKING:
    from sddit.recipes.device_speeds import Devices

SAME_MEANING = {
    **dict.fromkeys(("count", "num", "number", "samples"), "--per-class"),
    **dict.fromkeys(("dir", "folder", "in", "output", "to"), "--out"),
    "scale": "--guidance",
}
"""{name of an option elsewhere: ours}."""


class SdditCommand(click.Command):
    """A click command with `--debug`, suggestions for unknown options, and examples at the end of its help."""

    unknown_option_hint = ""  # what to try where no option resembles an unknown one

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.append(DEBUG)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as unknown:
            names = [name for param in self.params for name in param.opts if name.startswith("--")]
            similar = similar_options(unknown.option_name, names)
            hint = f"Did you mean {' or '.join(map(repr, similar))}?" if similar else self.unknown_option_hint
            message = f"No such option {unknown.option_name!r}. {hint}".strip()
            raise click.UsageError(message, unknown.ctx) from None

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)


def similar_options(unknown: str, names: list[str]) -> list[str]:
    """Return the options that an unknown one may stand for: by meaning, else by spelling."""
    bare = unknown.lstrip("-").replace("_", "-")
    if (meant := SAME_MEANING.get(bare)) in names:
        return [meant]
    by_bare_name = {name.lstrip("-"): name for name in names}
    return [by_bare_name[match] for match in get_close_matches(bare, by_bare_name, cutoff=0.7)]


def write_examples(formatter: click.HelpFormatter, text: str) -> None:
    """Write the examples of a help text, without rewrapping their lines."""
    with formatter.section("Examples"):
        formatter.write("".join(f"{' ' * formatter.current_indent}{line}\n" for line in text.strip().splitlines()))


def set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    current_state().debug |= value


DEBUG = click.Option(
    ["--debug"], is_flag=True, expose_value=False, callback=set_debug, help="Show full tracebacks of errors."
)


class PathOption(click.Path):
    """A path. An empty one is refused: it would mean the current folder. `~` is a home folder, as in a shell.

    Shells do not expand it in `--out=~/runs`, which would create a folder named `~`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        where = param.get_error_hint(ctx) if param is not None and ctx is not None else "command line"
        return super().convert(expand_user(non_empty(value), where.replace("'", "")), param, ctx)


def named_devices(ctx: click.Context, param: click.Parameter, value: str | None) -> Devices | None:
    """Return the devices of an option by name and number, such as `8xH100`."""
    from sddit.recipes.device_speeds import parse_devices

    try:
        return None if value is None else parse_devices(value)
    except ValueError as refused:
        raise click.BadParameter(str(refused), ctx, param) from None


def non_empty(value: Any) -> Any:
    """Refuse an empty name or path: it usually comes from an unset shell variable."""
    if value == "":
        raise click.BadParameter("must not be empty (unset shell variable?)")
    return value


class LayoutOption(click.Option):
    """An option whose help lists the published layouts of all plugins. They are imported only when help is shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        if (record := super().get_help_record(ctx)) is None:
            return None
        flags, text = record
        return flags, f"{text}  Published: {', '.join(sorted(layouts()))}."


device_option = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Device to compute on."
)
plugin_option = click.option(
    "--plugin", multiple=True, metavar="NAME", help="Also load this plugin: a name, or ./file.py. Repeatable."
)
step_option = click.option(
    "--step", metavar="N", type=click.IntRange(0), help="Step of the checkpoint.  [default: newest]"
)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
json_and_progress_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; progress goes to stderr.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of `sddit-run RECIPE`, each named as its flag unless a comment says otherwise."""

    dry_run: bool
    show_all: bool  # --all
    out: Path
    device: str
    fresh: bool
    resume: Path | None
    allow: tuple[str, ...]  # --allow-change
    nproc: int | None
    on: Devices | None
    jobs: int | None
    only: str | None
    no_reuse: bool
    as_json: bool  # --json

    @property
    def processes(self) -> int:
        """Number of processes of the run."""
        return self.nproc or (self.on.count if self.on else processes.world_size())

    def refuse_contradictions(self) -> None:
        """Refuse flags that exclude each other for every recipe."""
        if self.show_all and not self.dry_run:
            raise click.UsageError("--all needs -n: it lists every value of the plan")
        if self.on and not self.dry_run:
            raise click.UsageError("--on needs -n: it estimates the time of the plan")
        if self.on and self.nproc not in (None, self.on.count):
            raise click.UsageError(f"--on {self.on} has a process on each device, and --nproc is {self.nproc}")
        if self.dry_run and (self.fresh or self.resume):
            raise click.UsageError(f"-n runs nothing: remove {'--fresh' if self.fresh else '--resume'}")
        if self.fresh and self.resume:
            raise click.UsageError("--fresh and --resume are mutually exclusive")
        if self.allow and not self.resume:
            raise click.UsageError("--allow-change needs --resume: otherwise a changed recipe gets its own run folder")

    def refuse_for_ablation(self) -> None:
        """Refuse flags of single runs, and ablation flags that exclude each other."""
        if (self.nproc or processes.placement().size) > 1:
            raise click.UsageError("an ablation cannot use several processes per run; use --jobs for parallel runs")
        if self.on:
            raise click.UsageError("--on is for a single run: use the recipe of an arm")
        if self.fresh:
            raise click.UsageError("--fresh is for a single run; for an ablation use --no-reuse")
        if self.resume:
            raise click.UsageError("--resume is for a single run; an ablation resumes when its command is rerun")
        flags = self._ablation_flags()
        if self.dry_run and flags:
            raise click.UsageError(f"-n runs nothing: remove {flags[0]}")
        if self.only is not None and len(flags) > 1:
            other = next(flag for flag in flags if flag != "--only")
            raise click.UsageError(f"--only executes one run of the plan: remove {other}")

    def refuse_for_single_run(self) -> None:
        if flags := self._ablation_flags():
            raise click.UsageError(f"{flags[0]} is for ablations, and this recipe has no [ablation]")

    def _ablation_flags(self) -> list[str]:
        values = {"--jobs": self.jobs, "--only": self.only, "--no-reuse": self.no_reuse}
        return [flag for flag, value in values.items() if value not in (None, False)]
