"""docs/imagenet.md: its plan, sizes and script are those of the toolkit."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from sddit.formatting import format_duration, format_si

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(autouse=True)
def without_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SDDIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def planned(sddit_run: Any, name: str) -> dict[str, Any]:
    said = sddit_run("-n", f"imagenet256/{name}", "--on", "8xA100", "--json")
    made: dict[str, Any] = json.loads(said.stdout)
    return made


def checkpoint_bytes(memory: dict[str, int]) -> int:
    return sum(memory[name] for name in ("weights", "optimizer", "averages", "teacher"))


def test_it_shows_what_the_plan_prints(sddit_run: Any) -> None:
    found = re.search(r"<!-- plan: (.*) -->\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert found
    printed = [" ".join(line.split()) for line in sddit_run("-n", *shlex.split(found[1])).stdout.splitlines()]
    shown = found[2].splitlines()
    assert len(shown) == 6
    assert [line for line in shown if line not in printed] == []


def test_it_shows_the_script_as_it_is() -> None:
    found = re.search(r"<!-- file: examples/train.sbatch -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    assert found and found[1] == (ROOT / "docs" / "examples" / "train.sbatch").read_text(encoding="utf-8")


def test_the_table_of_sizes_is_that_of_the_plans(sddit_run: Any) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\S+ E) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for name, *figures in rows:
        made = planned(sddit_run, name)
        memory = made["memory"]
        assert figures == [
            format_si(made["training_flops"]),
            format_duration(made["on"]["training_seconds"]),
            format_si(memory["total"], "B"),
            format_si(checkpoint_bytes(memory), "B"),
        ]


def test_its_sums(sddit_run: Any) -> None:
    made = planned(sddit_run, "sd-dit-b2")
    saved = checkpoint_bytes(made["memory"])
    pixels, latents, encoded = 50_000 * 256 * 256 * 3, 50_000 * 4 * 32 * 32 * 2, 1_281_167 * 8 * 32 * 32 * 2
    for figure in (saved, 3 * saved, pixels, latents, 2 * encoded, encoded):
        assert format_si(figure, "B").replace(" GB", "") in PAGE.replace("42.0", "42").replace("21.0", "21")
    fp32 = {"A100": 0.4 * 8 * 19.5e12, "H100": 0.4 * 8 * 67e12}
    encode, decode = 2 * 1_281_167 * 272.7e9, 50_000 * 622.2e9
    assert (encode / fp32["A100"] / 60, encode / fp32["H100"] / 60) == pytest.approx((188, 54), abs=2)
    assert (decode / fp32["A100"], decode / fp32["H100"]) == pytest.approx((498, 145), abs=1)
    ratio = made["flops_per_image"] / planned(sddit_run, "dit-b2")["flops_per_image"]
    assert round(ratio, 2) == 1.54 and round(0.173 * ratio, 3) == 0.267


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("sddit-run -n ")])
def test_its_plans_run_before_there_are_data(sddit_run: Any, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    assert sddit_run(*words).status == 0


def test_its_options_exist(sddit_run: Any) -> None:
    text = " ".join(COMMANDS).replace(" \\", "")
    for verb in ("evaluate", "reference", "bench"):
        words = re.search(rf"sddit-run {verb} (.*?)(?=sddit-run|RUN=|$)", text)
        assert words, verb
        known = sddit_run(verb, "--help").stdout
        assert all(option in known for option in re.findall(r" (--[a-z-]+)", words[1])), words[0]
