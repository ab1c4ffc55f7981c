"""A published ablation: what is written, that it is stable and impersonal, and what is refused."""

from __future__ import annotations

import csv
import json
import re
from io import StringIO
from xml.etree import ElementTree

import pytest

from sddit.ablations import publish as publishing
from sddit.ablations.publish import MOST_POINTS, publish, thinned
from sddit.ablations.published import pathless
from sddit.ablations.readme import plain
from sddit.ablations.report import page
from sddit.ablations.results import gather, note_failure
from sddit.errors import SdditError


def contents(folder):
    """Every file by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_everything_is_there_and_nothing_else(finished, tmp_path):
    written = publish(finished, tmp_path / "pub")
    held = contents(tmp_path / "pub")
    assert held.keys() == {str(path.relative_to(tmp_path / "pub")) for path in written}
    assert held.keys() == {
        "README.md", "report.html", "results.jsonl", "plan.json", "environment.json", "curves.csv",
        "recipes/base.json", "recipes/shifted.json", "recipes/rival.json",
        "samples/base.png", "samples/shifted.png", "samples/rival.png",
        *(f"figures/{name}-over-{axis}.svg" for name in ("loss.denoise", "toy-FD") for axis in ("steps", "flops")),
    }  # fmt: skip


def test_twice_gives_the_same_bytes(finished, tmp_path, monkeypatch):
    publish(finished, tmp_path / "one")
    first = contents(tmp_path / "one")
    (tmp_path / "one" / "figures" / "of-an-earlier-one.svg").write_text("<svg/>")
    publish(finished, tmp_path / "one")
    monkeypatch.chdir(finished)
    publish(type(finished)("."), tmp_path / "two")
    assert contents(tmp_path / "one") == first == contents(tmp_path / "two")


def test_another_result_gives_other_bytes(finished, tmp_path):
    publish(finished, tmp_path / "one")
    run = finished / gather(finished).rows[0].folder
    (run / "scores.json").write_text(json.dumps({"toy": {"fd": 1.5}}))
    publish(finished, tmp_path / "two")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {name for name in one if one[name] != two[name]} >= {"README.md", "report.html", "results.jsonl"}


def test_no_path_of_the_machine_and_no_name_of_a_user(finished, tmp_path):
    plan = json.loads((finished / "plan.json").read_text())
    plan["command"] = f"sddit-run {tmp_path}/abl.toml dataset.folder={tmp_path}/images"
    (finished / "plan.json").write_text(json.dumps(plan))
    row = gather(finished).rows[-1]
    (finished / row.folder / "report.html").unlink()
    note_failure(finished, (finished / row.folder).name, f"SD-D300: nothing lies in '{tmp_path}/data/train'")
    publish(finished, tmp_path / "pub", unfinished=True)
    held = contents(tmp_path / "pub")
    assert not [name for name, content in held.items() if str(tmp_path).encode() in content or b"someone" in content]
    assert "sddit-run abl.toml dataset.folder=images" in held["README.md"].decode()
    assert "SD-D300: nothing lies in 'train'" in held["results.jsonl"].decode()


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("read /home/a/b.toml now", "read b.toml now"),
        ("key=/data/x", "key=x"),
        ("['~/a b', \"/c/d\"]", "['a b', \"d\"]"),
        ("../base/x.toml and a/b and 3/4", "../base/x.toml and a/b and 3/4"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("before / after", "before / after"),
    ],
)
def test_absolute_paths_are_cut(text, cut):
    assert pathless({"a": [text, 1, None]}) == {"a": [cut, 1, None]}


def test_the_readme_says_what_the_report_says(finished, tmp_path):
    publish(finished, tmp_path / "pub")
    text = (tmp_path / "pub" / "README.md").read_text()
    for part in (
        r"**Does it \*help\*?**", "abl.toml", "## What came out", "in each of 3 seeds (0, 1, 2)", "## Before you believe it",
        "## The arms", "| **base** | 2 ± 1<br>baseline | 3 of 3 | `none` |", "## Cost", "**Same tuning?** The recipe states: None, see tuning.md",
        "![loss.denoise](figures/loss.denoise-over-steps.svg)", "![samples of rival](samples/rival.png)", "| packages.torch | 2 |",
    ):  # fmt: skip
        assert part in text, part
    assert "looking at 2 arms" in text
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert linked
    assert all((tmp_path / "pub" / name).is_file() for name in linked)


def test_every_line_of_a_table_has_as_many_cells(finished, tmp_path):
    publish(finished, tmp_path / "pub")
    blocks = re.findall(r"(?:^\|.*\n)+", (tmp_path / "pub" / "README.md").read_text(), re.MULTILINE)
    assert len(blocks) == 5
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_text_stays_text():
    assert plain("<b>*x* a_b _c_ [d](e) `f` g|h") == r"\<b>\*x\* a_b \_c\_ \[d\](e) \`f\` g\|h"


def test_figures_stand_alone(finished, tmp_path):
    publish(finished, tmp_path / "pub")
    for path in (tmp_path / "pub" / "figures").glob("*.svg"):
        picture = ElementTree.fromstring(path.read_text())
        assert picture.get("width")
        assert picture[0].tag == "{http://www.w3.org/2000/svg}rect"
        assert picture[0].get("fill") == "#fff"


def test_curves_are_means_over_seeds(finished, tmp_path):
    publish(finished, tmp_path / "pub")
    rows = list(csv.DictReader(StringIO((tmp_path / "pub" / "curves.csv").read_text())))
    (row,) = [one for one in rows if (one["arm"], one["key"], one["step"]) == ("rival", "loss/denoise", "4")]
    assert (row["runs"], float(row["mean"]), float(row["low"]), float(row["high"])) == ("3", 1.25, 0.25, 2.25)
    assert {one["key"] for one in rows} == {"seconds", "loss/denoise", "score/toy.fd"}


@pytest.mark.parametrize("number", [0, 1, MOST_POINTS, MOST_POINTS + 1, 12345])
def test_thinned_points_keep_the_last(number):
    points = list(range(number))
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert kept[-1:] == points[-1:]
    assert kept == sorted(kept)


def test_a_large_report_goes_without_pictures(finished, tmp_path, monkeypatch):
    results = gather(finished)
    assert "data:image/png" in page(results)
    monkeypatch.setattr(publishing, "LARGEST_REPORT", 1000)
    publish(finished, tmp_path / "pub")
    assert "data:image/png" not in (tmp_path / "pub" / "report.html").read_text()


def test_what_is_not_finished_is_refused_unless_asked(sddit_run, finished, tmp_path):
    row = gather(finished).rows[-1]
    (finished / row.folder / "report.html").unlink()
    said = sddit_run("publish", finished, tmp_path / "pub")
    assert said.status == 8
    assert "SD-F710: 1 of 9 runs are not finished" in said.err
    assert "rival seed 2 stopped" in said.err
    assert not (tmp_path / "pub").exists()
    assert sddit_run("publish", finished, tmp_path / "pub", "--unfinished").status == 0
    assert "1 of 9 runs are still to be finished" in (tmp_path / "pub" / "README.md").read_text()


def test_nothing_else_is_replaced(finished, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(SdditError, match="SD-F711"):
        publish(finished, other)
    assert contents(other) == {"thesis.tex": b""}


def test_what_is_no_ablation_is_refused(sddit_run, tmp_path):
    said = sddit_run("publish", tmp_path, tmp_path / "pub")
    assert (said.status, "SD-T922" in said.err) == (2, True)
