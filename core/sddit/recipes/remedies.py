"""Complete the fixes of problems with the command line that applies them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sddit.errors import Problem
from sddit.recipes.merge import Merged
from sddit.recipes.parsing import shown
from sddit.recipes.search import name_of
from sddit.storage.run_folder import RECIPE

NO_FOLDER, NO_CACHE, NO_WEIGHTS = "SD-D300", "SD-D341", "SD-D351"
PLANNED_DATA = ("dataset.name=declared", "dataset.image=[4, 32, 32]", "dataset.classes=1000")
"""Overrides for a plan without a cache of latents: those of 256x256 images of ImageNet by Stable Diffusion's VAE."""


def with_command(problems: Sequence[Problem], merged: Merged) -> list[Problem]:
    """Return the problems, with the command that makes all changes that their fixes propose.

    Such a fix has the form `key=value`. Without overrides there is no command to repeat, and the file is to be edited.
    """
    changes = [problem.fix for problem in problems if re.fullmatch(r"[\w.-]+=\S+", problem.fix)]
    if not merged.overrides:
        return [replace(p, fix=p.fix.replace("=", " = ")) if p.fix in changes else p for p in problems]
    keys = {change.partition("=")[0] for change in changes}
    typed = [text for text in merged.overrides if text.partition("=")[0].strip() not in keys]
    name = name_of(merged.path) if merged.path else "RECIPE"
    command = shlex.join(["sddit-run", name, *typed, *changes])
    return [replace(problem, fix=command) if problem.fix in changes else problem for problem in problems]


def with_data_command(problem: Problem, merged: Merged) -> Problem:
    """Return a problem of data or weights of a codec that are not found with the command for it: to plan without the
    data, or to name the place of either.
    """
    if problem.code not in (NO_FOLDER, NO_CACHE, NO_WEIGHTS):
        return problem
    if not merged.resolved:
        return with_plan_command(problem, merged)
    found = re.match(r"(dataset|codec)\.\w+", problem.where)
    return with_new_path(problem, found[0], merged.path) if found and not merged.overrides else problem


def with_new_path(problem: Problem, key: str, path: Path | None) -> Problem:
    """Return a problem of files that are not found with the command that gives the run at `path` their new place."""
    if path is None or path.name != RECIPE:
        return problem
    command = shlex.join(["sddit-run", shown(path), "--resume", shown(path.parent), f"{key}=NEW_PATH"])
    return replace(problem, fix=f"restore what is missing, or if it was moved:  {command}")


def with_plan_command(problem: Problem, merged: Merged) -> Problem:
    """Return the problem of a missing cache of latents with the command that plans the recipe without it."""
    if problem.code != NO_CACHE:
        return problem
    name = name_of(merged.path) if merged.path else "RECIPE"
    if "declared" in merged.tables["dataset"]:
        command, what = shlex.join(["sddit-run", "-n", name, *merged.overrides]), "To plan without the data:"
    else:
        kept = [text for text in merged.overrides if not text.startswith("dataset.")]
        command = shlex.join(["sddit-run", "-n", name, *kept, *PLANNED_DATA])
        what = "To plan without the data, with your shape and classes:"
    return replace(problem, fix=f"{problem.fix}. {what}  {command}".removeprefix(". "))
