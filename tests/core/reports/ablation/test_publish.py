"""A published ablation: what is written, that it is stable and names no local paths, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sddit.ablations.analysis.diagnostics import logs_of
from sddit.ablations.analysis.results import gather, note_failure
from sddit.errors import SdditError
from sddit.evaluation.probe import Probe
from sddit.reports.ablation.ablation_tables import how_soon
from sddit.reports.ablation.publish import publish
from sddit.reports.ablation.reproduction import shorten_paths, shorten_setting


def contents(folder):
    """Every file by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_everything_is_there_and_nothing_else(finished, tmp_path):
    written = publish(finished, tmp_path / "pub")
    held = contents(tmp_path / "pub")
    assert held.keys() == {str(path.relative_to(tmp_path / "pub")) for path in written}
    assert held.keys() == {
        "README.md",
        "results.jsonl",
        "plan.json",
        "environment.json",
        "sddit-files.json",
        "recipes/base.json",
        "recipes/shifted.json",
        "recipes/rival.json",
        "samples/base.png",
        "samples/shifted.png",
        "samples/rival.png",
        *(f"figures/{name}-over-{axis}.svg" for name in ("loss.denoise", "toy-FD") for axis in ("steps", "flops")),
    }


def test_twice_gives_the_same_bytes(finished, tmp_path, monkeypatch):
    publish(finished, tmp_path / "one")
    first = contents(tmp_path / "one")
    publish(finished, tmp_path / "one")
    monkeypatch.chdir(finished)
    publish(type(finished)("."), tmp_path / "two")
    assert contents(tmp_path / "one") == first == contents(tmp_path / "two")


def test_another_result_gives_other_bytes(finished, tmp_path):
    publish(finished, tmp_path / "one")
    run = finished / gather(finished).runs[0].folder
    (run / "scores.json").write_text(json.dumps({"toy": {"fd": 1.5}}))
    publish(finished, tmp_path / "two")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {name for name in one if one[name] != two[name]} >= {"README.md", "results.jsonl"}


def test_no_path_of_the_machine_and_no_name_of_a_user(finished, tmp_path):
    plan = json.loads((finished / "plan.json").read_text())
    plan["command"] = f"sddit-run {tmp_path}/abl.toml dataset.folder={tmp_path}/images"
    (finished / "plan.json").write_text(json.dumps(plan))
    row = gather(finished).runs[-1]
    (finished / row.folder / "report.html").unlink()
    note_failure(finished, (finished / row.folder).name, f"SD-D300: nothing is in '{tmp_path}/data/train'")
    publish(finished, tmp_path / "pub", unfinished=True)
    held = contents(tmp_path / "pub")
    assert not [name for name, content in held.items() if str(tmp_path).encode() in content or b"someone" in content]
    assert "sddit-run abl.toml dataset.folder=images" in held["README.md"].decode()
    assert "SD-D300: nothing is in 'train'" in held["results.jsonl"].decode()


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("read /home/a/b.toml now", "read b.toml now"),
        ("key=/data/x", "key=x"),
        ("['~/a b', \"/c/d\"]", "['a b', \"d\"]"),
        ("../base/x.toml and a/b and 3/4", "../base/x.toml and a/b and 3/4"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("before / after", "before / after"),
        ("weights 0.1 /0.3 / 1, of /0.1/0.3 and /x", "weights 0.1 /0.3 / 1, of /0.1/0.3 and /x"),
        ("<i>/y</i> and <script>alert(2)</script><br/>", "<i>/y</i> and <script>alert(2)</script><br/>"),
        ("10 %/step/run and f(x)/g/h and w/o and/or", "10 %/step/run and f(x)/g/h and w/o and/or"),
        ("/home//ann///x and /1tb/ann/x but /6e-3/1.2e-2", "x and x but /6e-3/1.2e-2"),
        ("~/x and ~ann/data/x.npz but ~5/6", "x and x.npz but ~5/6"),
        ("<b>/home/ann/x</b>", "<b>x</b>"),
        ("/srv/a.py:/srv/b.py:3 in `/srv/c d/e`", "a.py:b.py:3 in `c d/e`"),
        ("file:///home/ann/x and sqlite:////home/ann/y.db", "file://x and sqlite://y.db"),
    ],
)
def test_absolute_paths_are_cut(text, cut):
    assert shorten_paths(text) == cut


@pytest.mark.parametrize(
    ("setting", "cut"),
    [
        ("/home/ann smith/my data/x y.npz", "x y.npz"),
        ("/data", "data"),
        ("/0/images/", "images"),
        ("~/x", "x"),
        ("~ann/x", "x"),
        ("images/train", "images/train"),
        ("hf://org/name", "hf://org/name"),
        ("", ""),
        (0.5, 0.5),
    ],
)
def test_a_setting_that_is_a_path_is_cut_whole(setting, cut):
    assert shorten_setting({"a": [setting], "b": {"c": setting}}) == {"a": [cut], "b": {"c": cut}}


def change(path, **values):
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_the_author_wrote_stays_as_written_but_for_paths(finished, tmp_path):
    question = "/a or <i>/y</i>? 0.1 /0.3 / 1, 6e-3/1.2e-2, $x$ for $5 and $6; seen in /home/someone/x.npz"
    change(finished / "plan.json", question=question)
    row = gather(finished).runs[-1]
    (finished / row.folder / "report.html").unlink()
    mine = f"-I{Path.home()}/my files/include"
    said = f"<script>alert(2)</script> in '/home/someone/loss.py' {mine}"
    note_failure(finished, (finished / row.folder).name, said)
    publish(finished, tmp_path / "pub", unfinished=True)
    plan = json.loads((tmp_path / "pub" / "plan.json").read_text())
    assert plan["question"] == question.replace("/home/someone/", "")
    error = json.loads((tmp_path / "pub" / "results.jsonl").read_text().splitlines()[-1])["error"]
    assert error == "<script>alert(2)</script> in 'loss.py' -Imy files/include"
    text = (tmp_path / "pub" / "README.md").read_text()
    assert r"**/a or \<i>/y\</i>? 0.1 /0.3 / 1, 6e-3/1.2e-2, \$x\$ for \$5 and \$6; seen in x.npz**" in text


def test_arms_that_are_named_by_a_path_keep_their_runs(finished, tmp_path):
    plan = finished / "plan.json"
    plan.write_text(plan.read_text().replace('"rival"', '"images=/home/someone/cats"'))
    publish(finished, tmp_path / "pub")
    held = gather(tmp_path / "pub")
    assert len(held.figure("images=cats", "toy.fd")) == 3
    assert "recipes/images-cats.json" in contents(tmp_path / "pub")


def test_arms_that_differ_by_a_folder_alone_are_not_merged(finished, tmp_path):
    plan = finished / "plan.json"
    text = plan.read_text().replace('"rival"', '"images=/home/someone/cats"')
    plan.write_text(text.replace('"shifted"', '"images=/home/other/cats"'))
    labels = [arm.label for arm in gather(finished).plan.arms]
    assert len({*labels} & {"images=/home/someone/cats", "images=/home/other/cats"}) == 2
    with pytest.raises(SdditError, match="SD-F712"):
        publish(finished, tmp_path / "pub")
    assert not (tmp_path / "pub").exists()


def followed(finished, scores):
    """Give each run of an arm a curve of scores."""
    for row in gather(finished).runs:
        log = [{"step": 2 * k + 2, "seconds": 1.0, "score/toy.fd": one} for k, one in enumerate(scores[row.arm])]
        (finished / row.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))


def rows_of(folder):
    """The published rows by arm and seed."""
    read = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {(row["arm"], row["seed"]): row for row in read}


def test_when_each_run_reached_each_target_is_published(finished, tmp_path):
    followed(finished, {"base": [4.0, 1.0], "shifted": [1.0, 0.5], "rival": [5.0, 2.0]})
    publish(finished, tmp_path / "pub")
    rows = rows_of(tmp_path / "pub")
    plan = json.loads((tmp_path / "pub" / "plan.json").read_text())
    spent = {arm["label"]: arm["flops_per_step"] for arm in plan["arms"]}
    assert rows["base", 0]["curves"] == {"toy.fd": [[2, 4.0], [4, 1.0]]}
    assert rows["base", 0]["reached"] == {"toy.fd": {"target": 1.0, "step": 4, "flops": 4 * spent["base"]}}
    assert rows["shifted", 1]["reached"] == {"toy.fd": {"target": 1.0, "step": 2, "flops": 2 * spent["shifted"]}}
    assert rows["rival", 2]["reached"] == {"toy.fd": {"target": 1.0, "step": None, "flops": None}}
    table = list(how_soon(gather(finished), logs_of(gather(finished)), "toy.fd"))
    assert [one["runs"] for one in table] == ["3 of 3", "3 of 3", "0 of 3"]
    assert [row.scores for row in gather(tmp_path / "pub").runs] == [row.scores for row in gather(finished).runs]


def test_runs_that_were_not_followed_or_probed_have_scores_alone(finished, tmp_path):
    publish(finished, tmp_path / "pub")
    assert not {"curves", "reached", "probe"} & rows_of(tmp_path / "pub")["base", 0].keys()


def test_the_probe_of_each_run_is_published(finished, tmp_path):
    table = ((0.5, 0.75), (0.25, 0.125))
    probe = Probe(
        weights="student",
        training=9,
        heldout=8,
        classes=2,
        chance=0.5,
        noise=(0.1, 0.5),
        sigmas=(0.1, 1.0),
        blocks=(1, 2),
        linear=table,
        neighbours=table,
        linear_untrained=table,
        neighbours_untrained=table,
    )
    for row in gather(finished).runs[1:]:
        (finished / row.folder / "probe.json").write_text(json.dumps(probe.to_json()))
    publish(finished, tmp_path / "pub")
    rows = list(rows_of(tmp_path / "pub").values())
    assert "probe" not in rows[0]
    assert all(row["probe"] == json.loads(json.dumps(probe.to_json())) for row in rows[1:])
    assert "Class information" in (tmp_path / "pub" / "README.md").read_text()


def test_the_settings_of_an_added_loss_are_listed(finished, tmp_path):
    """Those of a plan that was written with the table as one value, too; a loss of both sides stands as it did."""
    plan = json.loads((finished / "plan.json").read_text())
    plan["arms"][1]["differs"] = [["loss.more", None, {"name": "x", "weight": 1.0, "until": None, "t": {"start": 2}}]]
    plan["arms"][2]["differs"] = [["loss.more", {"name": "x", "weight": 0.1}, None], ["loss.agree.weight", 1.0, 0.25]]
    change(finished / "plan.json", arms=plan["arms"])
    publish(finished, tmp_path / "pub")
    text = (tmp_path / "pub" / "README.md").read_text()
    assert '`loss.more` none → (name "x", weight 1.0, t.start 2)\n' in text
    assert '`loss.more` (name "x", weight 0.1) → none, `loss.agree.weight` 1.0 → 0.25\n' in text
    assert "a table" not in text
    assert ["loss.more.weight", None, 1.0] in json.loads((tmp_path / "pub" / "plan.json").read_text())["arms"][1][
        "differs"
    ]


def test_the_readme_says_what_the_report_says(finished, tmp_path):
    publish(finished, tmp_path / "pub")
    text = (tmp_path / "pub" / "README.md").read_text()
    for part in (
        r"**Does it \*help\*?**",
        "abl.toml",
        "## What came out",
        "in each of 3 seeds (0, 1, 2)",
        "## Caveats",
        "## The arms",
        "| **base** | 2 ± 1<br>baseline | 3 of 3 | `none` |",
        "## Cost",
        "**Same tuning?** The recipe states: None, see tuning.md",
        "![loss.denoise](figures/loss.denoise-over-steps.svg)",
        "![samples of rival](samples/rival.png)",
        "| packages.torch | 2 |",
    ):
        assert part in text, part
    assert "Holm-corrected for 2 arms" in text
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert linked
    assert all((tmp_path / "pub" / name).is_file() for name in linked)


def test_every_line_of_a_table_has_as_many_cells(finished, tmp_path):
    publish(finished, tmp_path / "pub")
    blocks = re.findall(r"(?:^\|.*\n)+", (tmp_path / "pub" / "README.md").read_text(), re.MULTILINE)
    assert len(blocks) == 5
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_figures_stand_alone(finished, tmp_path):
    publish(finished, tmp_path / "pub")
    for path in (tmp_path / "pub" / "figures").glob("*.svg"):
        image = ElementTree.fromstring(path.read_text())
        assert image.get("width")
        assert image[0].tag == "{http://www.w3.org/2000/svg}rect"
        assert image[0].get("fill") == "#fff"


def test_what_is_not_finished_is_refused_unless_asked(sddit_run, finished, tmp_path):
    row = gather(finished).runs[-1]
    (finished / row.folder / "report.html").unlink()
    said = sddit_run("publish", finished, "--out", tmp_path / "pub")
    assert said.status == 8
    assert "SD-F710: 1 of 9 runs are not finished" in said.stderr
    assert "rival seed 2 stopped" in said.stderr
    assert not (tmp_path / "pub").exists()
    assert sddit_run("publish", finished, "--out", tmp_path / "pub", "--unfinished").status == 0
    assert "1 of 9 runs are still to be finished" in (tmp_path / "pub" / "README.md").read_text()


def test_nothing_else_is_replaced(finished, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(SdditError, match="SD-F711"):
        publish(finished, other)
    assert contents(other) == {"thesis.tex": b""}


def test_what_is_not_an_ablation_is_refused(sddit_run, tmp_path):
    said = sddit_run("publish", tmp_path, "--out", tmp_path / "pub")
    assert (said.status, "SD-T922" in said.stderr) == (2, True)


@pytest.fixture
def published(finished, tmp_path, monkeypatch):
    """`published()` is the command; its files are rendered once. The folder has a publication with other scores."""
    publish(finished, tmp_path / "before")
    for row in gather(finished).runs:
        (finished / row.folder / "scores.json").write_text(json.dumps({"toy": {"fd": 7.0 + row.seed}}))
    publish(finished, tmp_path / "after")
    results = gather(finished)
    rendered = {name: data for name, data in contents(tmp_path / "after").items() if name != "sddit-files.json"}
    module = "sddit.reports.ablation.publish"
    monkeypatch.setattr(f"{module}.gather", lambda folder: results)
    monkeypatch.setattr(f"{module}.without_local_paths", lambda results: results)
    monkeypatch.setattr(f"{module}.files", lambda results: rendered.items())
    return lambda to: publish(finished, to)


def score_of(folder):
    """Return the first published score, `nothing`, or `refused`."""
    try:
        return gather(folder).runs[0].scores["toy.fd"]
    except SdditError as failure:
        return "nothing" if not (folder / "sddit-files.json").exists() else failure.problems[0].code


@pytest.mark.parametrize(
    ("kill", "earlier"), [(True, "none"), (True, "listed"), (False, "listed"), (True, "unlisted")], ids=str
)
def test_a_fault_at_each_operation_tears_no_publication(published, in_child, tmp_path, kill, earlier):
    mine = {"recipes/mine.json": b"mine", "figures/mine/a.svg": b"mine", "thesis.tex": b"mine"}
    seen = []
    for turn in range(1, 1000, 4):
        to = tmp_path / "pub" / str(turn)
        if earlier != "none":
            shutil.copytree(tmp_path / "before", to)
            for name, data in mine.items():
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                (to / name).write_bytes(data)
            (to / "samples" / "link").symlink_to(tmp_path)
        if earlier == "unlisted":
            (to / "sddit-files.json").unlink()
        if in_child(lambda to=to: published(to), turn, kill=kill) == "done":
            break
        before = contents(to)
        seen.append(score_of(to) if to.exists() else "nothing")
        published(to)
        assert score_of(to) == 7.0
        after = contents(to)
        assert {name: data for name, data in after.items() if name in mine} == (mine if earlier != "none" else {})
        assert all(before[name] == after[name] for name in mine if earlier != "none")
        assert after.items() >= contents(tmp_path / "after").items()
        assert not list(to.glob(".tmp-*"))
    first = {"none": "nothing", "listed": 1.0, "unlisted": 1.0}[earlier]
    assert {*seen} <= {first, "nothing", "SD-F713", 7.0}
    assert seen.count(first) > 4 and "SD-F713" in seen


def test_table_refuses_a_publication_that_is_not_complete(published, sddit_run, in_child, tmp_path):
    to = tmp_path / "pub"
    for turn in range(1, 1000):
        in_child(lambda: published(to), turn, kill=True)
        if (to / "sddit-files.json").exists():
            break
        shutil.rmtree(to, ignore_errors=True)
    said = sddit_run("table", to)
    assert (said.status, "SD-F713: the publication is not complete" in said.stderr) == (8, True)
    published(to)
    assert sddit_run("table", to).status == 0


def test_files_of_the_user_and_links_survive(finished, tmp_path):
    """A file in recipes/, a folder in figures/; and samples/ as a link, which is in the way."""
    to = tmp_path / "pub"
    publish(finished, to)
    (to / "recipes" / "mine.json").write_text("mine")
    (to / "figures" / "mine").mkdir()
    publish(finished, to)
    assert (to / "recipes" / "mine.json").read_text() == "mine" and (to / "figures" / "mine").is_dir()
    (to / "samples").rename(tmp_path / "elsewhere")
    (to / "samples").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    with pytest.raises(SdditError, match=r"SD-F714(.|\n)*pub/samples"):
        publish(finished, to)
    assert contents(tmp_path) == before


def test_the_folder_of_an_ablation_is_not_replaced(finished):
    """It has a plan.json and a results.jsonl, too."""
    (finished / "results.jsonl").touch()
    before = contents(finished)
    with pytest.raises(SdditError, match="SD-F711"):
        publish(finished, finished)
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("null", "null"),
        ("[1]", "[1]"),
        ('{"arm": 1}', "arm"),
        ("xx", "not JSON: xx"),
        ("", "an empty file"),
        (None, "No such file"),
        ("[" * 9999, "not JSON"),
        (
            '{"arm": "gone", "seed": 0, "id": "x", "status": "finished"}',
            "'gone' with seed 0, which is not in plan.json",
        ),
    ],
)
def test_damaged_results_are_named(finished, sddit_run, tmp_path, text, got):
    publish(finished, tmp_path / "pub")
    (tmp_path / "pub" / "sddit-files.json").unlink()
    path = tmp_path / "pub" / "results.jsonl"
    path.unlink() if text is None else path.write_text(text)
    for words in (["table", tmp_path / "pub"], ["publish", tmp_path / "pub", "--out", tmp_path / "again"]):
        said = sddit_run(*words)
        assert (said.status, "error SD-F704" in said.stderr) == (8, True), said.stderr
        assert "results.jsonl" in said.stderr and got in said.stderr and "publish the ablation again" in said.stderr


def test_a_run_is_not_counted_twice(finished, sddit_run, tmp_path):
    publish(finished, tmp_path / "pub")
    (tmp_path / "pub" / "sddit-files.json").unlink()
    assert sddit_run("table", tmp_path / "pub").status == 0  # the control
    path = tmp_path / "pub" / "results.jsonl"
    path.write_text(path.read_text() * 2)
    said = sddit_run("table", tmp_path / "pub")
    assert (said.status, "error SD-F704" in said.stderr, "or in an earlier line" in said.stderr) == (8, True, True)


@pytest.mark.parametrize(
    "change", [None, "one seed twice", "steps", "arms", "metrics", "budget", "baseline", "run", "metric"]
)
def test_a_damaged_plan_is_named(finished, sddit_run, tmp_path, change):
    plan = json.loads((finished / "plan.json").read_text())
    if change in plan:
        del plan[change]
    elif change == "baseline":
        plan["arms"][1]["baseline"] = "gone"
    elif change == "run":
        plan["runs"][0]["arm"] = "gone"
    elif change == "metric":
        plan["metrics"] = ["toy.gone"]
    elif change == "one seed twice":
        plan["seeds"] *= 2
    elif change == "steps":
        plan["arms"][1]["steps"] = -1
    (finished / "plan.json").write_text(json.dumps(plan if change else {}))
    for words in (["table", finished], ["publish", finished, "--out", tmp_path / "pub"], [tmp_path / "abl.toml"]):
        said = sddit_run(*words)
        assert (said.status, "error SD-F704" in said.stderr) == (8, True), (words, said.stdout, said.stderr)
        assert "plan.json" in said.stderr and "delete it and rerun the command that writes it" in said.stderr
