#!/usr/bin/env python3
"""Kill a run at random moments, continue it each time, and compare its weights with a run that nobody disturbed.

    python tools/kill_run.py recipes/quickstart.toml --kills 10

Exit status 0: no checkpoint was broken and the finished weights are the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the kills did."""

    kills: int
    broken: int  # checkpoints that had to be moved aside
    same_weights: bool
    same_samples: bool

    @property
    def good(self) -> bool:
        return self.broken == 0 and self.same_weights and self.same_samples


def disturb(command: Sequence[str], kills: int, folder: Path, seed: int) -> Outcome:
    """Run `command` undisturbed, then again with `kills` kills spread over the time it took, and compare.

    Args:
        command: a whole `sddit-run` command without --out.
        kills: SIGKILLs; each start of the program is killed once, at random moments that spread over all there is to do.
        folder: an empty folder for both.
        seed: of the moments.
    """
    chance = random.Random(seed)
    took = seconds_of([*command, "--out", str(folder / "whole")])
    disturbed = [*command, "--out", str(folder / "killed")]
    moments = [took * (k + chance.random()) / kills for k in range(kills)]  # one at random in each equal part
    done = 0
    while done < kills:
        wait = max(moments[done] - took * share_done(folder / "killed"), chance.uniform(0.0, took / kills))
        process = subprocess.Popen(disturbed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if process.wait(wait) != 0:
                break  # it failed by itself: the last run shows why
            set_back(folder / "killed")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            print(f"kill {done} of {kills}: {state_of(folder / 'killed')}", flush=True)
    subprocess.run(disturbed, check=True, stdout=subprocess.DEVNULL)
    whole, killed = only_run(folder / "whole"), only_run(folder / "killed")
    return Outcome(
        kills=done,
        broken=len(list((killed / "checkpoints").glob("broken-*"))),
        same_weights=weights(whole) == weights(killed),
        same_samples=digest(whole / "samples/samples.npz") == digest(killed / "samples/samples.npz"),
    )


def seconds_of(command: Sequence[str]) -> float:
    """How long a command takes."""
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def share_done(folder: Path) -> float:
    """The share of its steps that the run need not take again."""
    steps = [int(path.name.removeprefix("step-")) for path in folder.glob("*/checkpoints/step-*")]
    if not steps:
        return 0.0
    recipe = json.loads((only_run(folder) / "recipe.resolved.json").read_text(encoding="utf-8"))
    return max(steps) / int(recipe["train"]["steps"])


def state_of(folder: Path) -> str:
    """What a kill left behind, in a few words."""
    run = next((path for path in folder.glob("*") if path.is_dir()), None)
    if run is None:
        return "no run folder yet"
    steps = [path.name for path in sorted((run / "checkpoints").glob("*-*"))]
    return f"{', '.join(steps) or 'no checkpoint'}; {'samples' if (run / 'samples/samples.npz').is_file() else 'no samples'}"


def set_back(folder: Path) -> None:
    """The run came to its end before its kill: take its report away, so that the next start has scoring left to do."""
    (only_run(folder) / "report.html").unlink()


def only_run(folder: Path) -> Path:
    """The one run folder in `folder`."""
    (found,) = [path for path in folder.iterdir() if path.is_dir()]
    return found


def weights(run: Path) -> dict[str, str]:
    """Hashes of every tensor file of the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    return {path.name: digest(path) for path in sorted(newest.glob("*.safetensors"))}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    command = [sys.executable, "-m", "sddit", given.recipe, *given.overrides]
    with tempfile.TemporaryDirectory() as folder:
        outcome = disturb(command, given.kills, Path(folder), given.seed)
    print(f"kills {outcome.kills}, broken checkpoints {outcome.broken}")
    print(f"weights the same bits: {outcome.same_weights}, samples the same bytes: {outcome.same_samples}")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
