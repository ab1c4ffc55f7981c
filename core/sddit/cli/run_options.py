"""Hold the options of `sddit-run RECIPE` and refuse combinations that contradict each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from sddit.distributed import processes


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
    jobs: int | None
    only: str | None
    no_reuse: bool
    as_json: bool  # --json

    def refuse_contradictions(self) -> None:
        """Refuse flags that exclude each other for every recipe."""
        if self.show_all and not self.dry_run:
            raise click.UsageError("--all needs -n: it lists every value of the plan")
        if self.dry_run and (self.fresh or self.resume):
            raise click.UsageError(f"-n runs nothing: remove {'--fresh' if self.fresh else '--resume'}")
        if self.fresh and self.resume:
            raise click.UsageError("--fresh and --resume are mutually exclusive")
        if self.allow and not self.resume:
            raise click.UsageError("--allow-change needs --resume: otherwise a changed recipe gets its own run folder")

    def refuse_for_ablation(self) -> None:
        """Refuse flags of single runs, and ablation flags that exclude each other."""
        if (self.nproc or processes.world_size()) > 1:
            raise click.UsageError("an ablation cannot use several processes per run; use --jobs for parallel runs")
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
        """Refuse flags of ablations."""
        if flags := self._ablation_flags():
            raise click.UsageError(f"{flags[0]} is for ablations, and this recipe has no [ablation]")

    def _ablation_flags(self) -> list[str]:
        """Return names of the ablation flags that are set."""
        values = {"--jobs": self.jobs, "--only": self.only, "--no-reuse": self.no_reuse}
        return [flag for flag, value in values.items() if value not in (None, False)]
