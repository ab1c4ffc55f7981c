"""Test what `sddit-run show` and `plugins` print about the standard plugin."""

from __future__ import annotations

import json
import re


def test_plugins_lists_what_the_standard_plugin_adds(sddit_run, toys):
    said = sddit_run("plugins")
    assert said.status == 0
    assert re.search(r"^sddit +sddit +optimizers: adamw, muon +loaded", said.stdout, re.MULTILINE)
    assert "tensorboard" in said.stdout


def test_show_prints_type_default_bounds_and_meaning(sddit_run, toys):
    said = sddit_run("show", "optimizers", "adamw")
    assert "arXiv:1711.05101" in said.stdout
    assert re.search(
        r"^betas +\[number, at least 0, below 1, number, at least 0, below 1\] +\(default \[0.9, 0.999\]\)",
        said.stdout,
        re.MULTILINE,
    )
    assert "    Added to the root of the second average." in said.stdout
    entries = {
        entry["key"]: entry
        for entry in json.loads(sddit_run("show", "optimizers", "adamw", "--json").stdout)["settings"]
    }
    assert entries["eps"] == {
        "key": "eps", "type": "number, above 0", "required": False, "default": 1e-8,
        "description": "Added to the root of the second average.",
    }  # fmt: skip
    schema = json.loads(sddit_run("show", "optimizers", "adamw", "--schema").stdout)
    assert schema["additionalProperties"] is False
