"""The report of an ablation: made-up results in, every part, number, word and caveat out."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image
from pydantic import TypeAdapter

from sddit.ablations.analysis.diagnostics import diagnoses, logs_of
from sddit.ablations.analysis.results import AblationResults, RunOutcome, without_gradient
from sddit.ablations.analysis.statistics import p_text, student_interval
from sddit.ablations.analysis.table import cells, comparisons
from sddit.ablations.analysis.targets import first_at, reached
from sddit.ablations.planning.measurements import MAX_PARAMETERS, check_recipe
from sddit.ablations.planning.records import ArmRecord, LeakCheck, PlanRecord
from sddit.evaluation.probe import Probe
from sddit.formatting import format_number
from sddit.interfaces import Monitor
from sddit.reports.ablation.ablation_report import page, write_report
from sddit.reports.ablation.ablation_tables import how_soon, interval_axis
from sddit.reports.ablation.caveats import caveats
from sddit.reports.ablation.conclusions import KINDS, fairness, findings, summary
from sddit.reports.ablation.curves import AXES, lines, metric_charts
from sddit.reports.ablation.phrases import floors_sentence
from sddit.reports.charts import as_file

HOSTILE = """</script><img src=x onerror=1>"'{{7*7}}"""
FD = {"base": [1.0, 2.0, 3.0], "good": [0.5, 1.52, 2.6], "bad": [2.5, 3.52, 4.6], "same": [1.3, 1.8, 2.95]}
METRICS = ("toy.fd", "toy.recall")


def arm(label: str, **changed):
    """An arm as plan.json has it."""
    return {
        "label": label,
        "changes": {} if label == "base" else {f"loss.{label}.weight": 0.5},
        "baseline": "base",
        "steps": 40,
        "batch": 8,
        "images": 320,
        "flops": 4e9,
        "flops_per_step": 1e8,
        "sampling_flops_per_image": 5e6,
        "parameters": 12_000,
        "sampled_parameters": 10_000,
        "memory": 1e6,
        "not_stated": [],
        "idle": [],
        "warnings": [],
        "leaks": asdict(LeakCheck()),
        "monitors": {"agree": [asdict(Monitor("entropy", "Entropy of the teacher", "above 1", low=1.0))]},
        **changed,
    }


def record(label: str, **changed) -> ArmRecord:
    return TypeAdapter(ArmRecord).validate_python(arm(label, **changed))


def row(label: str, seed: int, fd: float | None, **changed) -> RunOutcome:
    """A finished run, or without a figure a failed one."""
    values = {
        "arm": label,
        "seed": seed,
        "id": f"{label}{seed}",
        "status": "failed" if fd is None else "finished",
        "steps": 40,
        "images": 320,
        "flops": 4e9,
        "seconds": 8.0,
        "images_per_second": 40.0,
        "peak_memory": 5e8,
        "scores": {} if fd is None else {"toy.fd": fd, "toy.recall": 0.5, "toy.n": 360.0, "toy.samples": 1000.0},
        "folder": f"../runs/{seed}-{len(label)}{label[0]}",
        "error": "SD-N501: a non-finite value" if fd is None else "",
    }
    return RunOutcome(**(values | changed))


def png(width: int = 40) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, 20), (200, 30, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def make(tmp_path):
    """`make({arm: figures}, arms={label: changes}, **plan)`: results with the folders of their runs."""

    def made(fd=FD, *, arms=None, entropy=2.0, probe=True, **plan):
        changed = arms or {}
        planned = {
            "name": "tiny",
            "id": "0123456789ab",
            "command": "sddit-run tiny.toml",
            "question": "Does it help?",
            "tuning": "",
            "seeds": list(range(max(map(len, fd.values())))),
            "metrics": list(METRICS),
            "budget": {"rule": "images", "amount": 320.0, "seconds_per_step": {}},
            "threads": 1,
            "arms": [arm(label, **changed.get(label, {})) for label in fd],
            **plan,
        }
        rows = tuple(row(label, seed, value) for label, values in fd.items() for seed, value in enumerate(values))
        folder = tmp_path / "tiny-0123456789ab"
        folder.mkdir(exist_ok=True)
        for one in rows:
            if one.status == "finished":
                fill(folder / one.folder, one.seed, entropy, probe, one.scores["toy.fd"])
        return AblationResults(folder, PlanRecord.from_json(planned), rows)

    return made


def fill(run, seed, entropy, probe, fd):
    """What a run folder holds; the distance halves every ten steps, down to `fd`."""
    (run / "samples").mkdir(parents=True, exist_ok=True)
    (run / "samples" / "step-000040.png").write_bytes(png())
    (run / "environment.json").write_text(json.dumps({"python": "3.11", "device": "cpu", "packages": {"torch": "2"}}))
    log = [
        row
        for k in range(1, 5)
        for row in (
            {"step": 10.0 * k, "seconds": 2.0 * k + seed, "loss/denoise": 1 / k + seed, "agree/entropy": entropy},
            {"step": 10.0 * k, "seconds": 2.0 * k + seed, "score/toy.fd": fd * 2 ** (4 - k), "score/toy.recall": 0.5},
        )
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if probe:
        table = [[0.3, 0.4 + 0.01 * seed], [0.2, 0.3]]
        found = Probe(
            weights="student", training=100, heldout=50, classes=10, chance=0.1, noise=(0.0, 0.5), sigmas=(0.0, 0.5),
            blocks=(1, 2), linear=table, neighbours=table, linear_untrained=table, neighbours_untrained=table,
        )  # fmt: skip
        (run / "probe.json").write_text(json.dumps(found.to_json()))


class Page(HTMLParser):
    """The elements, the attributes and the visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str, str]] = []
        self.text = ""
        self.hidden = 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(tag, name, value or "") for name, value in attrs]
        self.hidden += tag == "style"

    def handle_endtag(self, tag):
        self.hidden -= tag == "style"

    def handle_data(self, data):
        self.text += "" if self.hidden else f"{' '.join(data.split())} "


def causes(results):
    return {one.kind: one for one in caveats(results, logs_of(results))}


def compared(results):
    return {metric: comparisons(results, metric) for metric in results.plan.metrics}


# Safety --------------------------------------------------------------------------------------------------------------


def hostile(results, text):
    """Every text that a user or a plugin gives is `text`."""
    labels = {"base": "base", "good": text}
    arms = tuple(
        replace(
            one,
            label=labels[one.label],
            changes={f"loss.{text}": text},
            warnings=(text,) if one.label == "good" else (),
            leaks=LeakCheck((text,)),
            monitors={"agree": (Monitor("entropy", text, text, low=9.0),)},
        )
        for one in results.plan.arms
    )
    rows = tuple(replace(one, arm=labels[one.arm], error=text, folder=one.folder) for one in results.runs)
    failing = replace(rows[-1], status="failed")
    plan = replace(results.plan, arms=arms, question=text, tuning=text, command=text, name=text, id=text)
    return AblationResults(results.folder, plan, (*rows[:-1], failing))


def test_hostile_text_stays_text(make):
    results = make({label: FD[label] for label in ("base", "good")})
    found, plain = (Page(page(hostile(results, text))) for text in (HOSTILE, "plain"))
    assert found.elements == plain.elements
    assert found.text.count(HOSTILE) >= 20
    assert "'49" not in found.text
    assert not [name for _, name, _ in found.values if name.startswith("on")]


def test_the_comparison_of_tags_has_teeth(make):
    html = page(hostile(make({label: FD[label] for label in ("base", "good")}), "plain"))
    assert Page(html.replace("plain", HOSTILE)).elements != Page(html).elements


def test_text_that_would_fool_the_eye_is_shown_escaped(make):
    html = page(make(question="a\u202eb\x1b[0m\x00"))
    assert not {"\u202e", "\x1b", "\x00"} & set(html)
    assert "a\\u202eb\\x1b[0m\\x00" in Page(html).text


def test_the_page_loads_nothing_and_runs_nothing(make):
    html = page(make())
    found = Page(html)
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in found.values
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in found.elements}
    links = [value for _, name, value in found.values if name in ("src", "href", "srcset", "xlink:href")]
    assert len(links) == 4
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"https?:|url\(|@import", html)


# Content -------------------------------------------------------------------------------------------------------------


def test_every_part_is_there(make):
    text = Page(page(make(FD | {"none": [None, None, None]}))).text
    for part in (
        "Does it help?", "Caveats", "What came out", "The arms", "Cost", "Is the comparison fair?",
        "Same parameters?", "Same FLOPs?", "Same tuning?", "How many seeds?", "Is it noise?", "Curves", "over seconds",
        "Samples side by side", "Diagnostics", "Entropy of the teacher", "Class information in the tokens",
        "Failed runs", "SD-N501: a non-finite value", "Plan, versions, commands", "sddit-run tiny.toml --only base0",
        "loss.good.weight = 0.5", "packages.torch",
    ):  # fmt: skip
        assert part in text, part


def test_samples_come_before_the_tables(make):
    html = page(make())
    assert html.index("What came out") < html.index("Samples side by side") < html.index("The arms")


def test_intervals_are_drawn_on_a_scale_with_a_circle_for_each_seed(make):
    results = make()
    html = page(results)
    axis = interval_axis(compared(results)["toy.fd"].values())
    assert axis is not None
    labels = re.findall(r'<text x="([^"]+)" y="12" text-anchor="middle">([^<]+)</text>', html)
    assert labels[: len(axis.ticks())] == [(f"{axis(tick):.1f}", format_number(tick)) for tick in axis.ticks()]
    assert 0.0 in axis.ticks() and axis.low < -0.5 and axis.high > 1.6  # all differences, and no difference
    assert "difference in toy FD" in Page(html).text
    drawn = re.search(r"<title>([^<]+) by seed</title>.*?</svg>", html, re.S)
    assert drawn is not None and drawn[1] == "-0.5, -0.48, -0.4"
    circles = re.findall(r'<circle class="seed" cx="([^"]+)"', drawn[0])
    assert circles == [f"{axis(own - base):.1f}" for own, base in zip(FD["good"], FD["base"], strict=True)]


def test_a_single_seed_is_drawn_without_an_interval(make):
    html = page(make({"base": [1.0], "good": [0.5]}))
    assert html.count('class="seed"') == len(METRICS) and 'r="3.4"' not in html


def test_parts_without_content_are_omitted(make):
    results = make({"base": [1.0, 2.0, 3.0]}, probe=False, question="")
    for one in results.runs:
        (results.folder / one.folder / "samples" / "step-000040.png").unlink()
    text = Page(page(results)).text
    for part in ("Failed runs", "Samples side by side", "Class information", "Caveats"):
        assert part not in text
    assert "nothing is compared" in text


def test_an_ablation_that_has_not_begun_has_a_report(make):
    results = make()
    waiting = tuple(replace(one, status="waiting", scores={}, folder="../runs/nowhere") for one in results.runs)
    text = Page(page(replace(results, runs=waiting))).text
    assert "0 of 12 runs finished" in text
    assert "12 of 12 runs are still to be finished, so these results are provisional." in text


def test_the_numbers_are_those_of_the_statistics(make):
    results = make()
    text = Page(page(results)).text
    differences = [b - a for a, b in zip(FD["base"], FD["good"], strict=True)]
    mean, low, high = (float(v) for v in student_interval(differences))
    found = comparisons(results, "toy.fd")["good"]
    assert (found.difference, found.low, found.high) == (mean, low, high)
    assert f"{mean:+.2f}" in text
    assert f"{low:.2f}, {high:.2f}" in text
    assert f"{low:.2f} to {high:.2f} over 3 seeds, {p_text(found.p_holm)} Holm-corrected for 3 arms" in text
    assert "2 ± 1" in text


def test_tuning_is_quoted_or_missed(make):
    assert "Not stated. State in ablation.tuning" in Page(page(make())).text
    stated = Page(page(make(tuning="Three rates for each arm."))).text
    assert "The recipe states: Three rates for each arm." in stated
    assert "Not stated" not in stated


def test_a_damaged_run_leaves_the_rest(make):
    results = make()
    run = results.folder / results.runs[0].folder
    for name in ("metrics.jsonl", "probe.json", "environment.json", "samples/step-000040.png"):
        (run / name).write_bytes(b"\xff\xfe{\n")
    found = Page(page(results))
    assert "base : no image" in found.text
    assert len([tag for tag, _ in found.elements if tag == "img"]) == 3


def test_a_wide_image_is_shrunk(make):
    results = make()
    path = results.folder / results.runs[0].folder / "samples" / "step-000040.png"
    path.write_bytes(png(width=4000))
    assert len(page(results)) < 400_000
    from sddit.reports.ablation.sample_grids import WIDEST, shrunk

    assert Image.open(BytesIO(shrunk(path))).size == (WIDEST, round(20 * WIDEST / 4000))


def test_it_is_written_whole_and_without_torch(make):
    path = write_report(make())
    assert path.name == "report.html"
    assert path.read_text(encoding="utf-8").endswith("</html>")


# Losses that did not reach the network -----------------------------------------------------------------------------


def with_ratios(results, **ratios):
    """The results with the gradient ratios of loss.x in the logs of arms, a value per seed."""
    rows = []
    for one in results.runs:
        path = results.folder / one.folder / "metrics.jsonl"
        values = ratios.get(one.arm)
        if values is not None:
            log = [json.loads(line) | {"grad_ratio/x": values[one.seed]} for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(line) + "\n" for line in log))
        rows.append(replace(one, without_gradient=without_gradient(results.folder / one.folder)))
    return replace(results, runs=tuple(rows))


def test_an_arm_whose_loss_never_reached_the_network_is_not_within_noise(make):
    results = make()
    assert comparisons(results, "toy.fd")["same"].verdict == "within noise"  # the control
    results = with_ratios(results, same=[0.0, 0.0, 0.0], good=[0.5, 0.6, 0.7])
    assert comparisons(results, "toy.fd")["same"].verdict == "no verdict without gradient"
    found = caveats(results, logs_of(results))
    (own,) = [one for one in found if one.kind == "no gradient"]
    assert own.arms == ("same",)
    assert "loss.x never changed the network" in own.text
    assert "3 of 3 runs of same" in own.text
    assert "gradient out of range" not in {one.kind for one in found}
    compared = {metric: comparisons(results, metric) for metric in METRICS}
    said = summary(results, compared, found)
    assert f"{KINDS[5]}: same." in said
    assert not any(text.startswith(KINDS[3]) and "same" in text for text in said)
    assert "Doubtful, because a caveat applies to the arm or to its baseline: same." in said
    (finding,) = [one for one in findings(results, compared, found) if one.arm == "same"]
    assert finding.words == "no verdict without gradient on toy FD and toy recall"
    assert finding.doubts == ["no gradient"]
    text = Page(page(results)).text
    assert "doubtful: no gradient" in text
    assert "alarm in 3 of 3" in text
    assert any("no verdict without gradient" in cell for line in cells(results)[1] for cell in line)


def test_a_loss_that_reached_the_network_in_some_runs_is_compared_with_a_caveat(make):
    results = with_ratios(make(), same=[0.0, 0.0, 0.5])
    assert comparisons(results, "toy.fd")["same"].verdict == "within noise"
    (own,) = [one for one in caveats(results, logs_of(results)) if one.kind == "no gradient"]
    assert own.doubt
    assert "2 of 3 runs of same" in own.text


def test_a_loss_without_gradient_in_both_is_not_what_is_compared(make):
    zero = [0.0, 0.0, 0.0]
    both = with_ratios(make(), same=zero, base=zero)
    assert comparisons(both, "toy.fd")["same"].verdict == "within noise"
    differs = [("loss.x.weight", 0.1, 0.2)]
    tuned = with_ratios(make(arms={"same": {"differs": differs}}), same=zero, base=zero)
    assert comparisons(tuned, "toy.fd")["same"].verdict == "no verdict without gradient"
    only_base = with_ratios(make(), base=zero, same=[0.5, 0.5, 0.5])
    assert comparisons(only_base, "toy.fd")["same"].verdict == "no verdict without gradient"


@pytest.mark.parametrize(("ratio", "why"), [(0.0065, "0.0065 is below 0.01"), (4.0, "4 is above 3"), (0.04, "")])
def test_a_small_or_large_gradient_is_a_caveat(make, ratio, why):
    results = with_ratios(make(), same=[ratio] * 3)
    found = [one for one in caveats(results, logs_of(results)) if one.kind == "gradient out of range"]
    assert len(found) == bool(why)
    if found:
        assert f"healthy range of 0.01 to 3: {why} in same (3 of 3 runs)" in found[0].text
        assert "Doubtful" in " ".join(summary(results, {"toy.fd": comparisons(results, "toy.fd")}, found))


def test_clipping_that_heads_take_part_in_is_a_caveat(make):
    head = {"shared_clip": True, "differs": [("loss.x.name", None, "toy")]}
    rate = {"shared_clip": True, "differs": [("optimizer.lr", 0.1, 0.2)]}
    own = {"differs": [("loss.x.name", None, "toy")]}
    results = make(arms={"good": head, "bad": rate, "same": own})
    (found,) = [one for one in caveats(results, logs_of(results)) if one.kind == "shared clipping"]
    assert found.arms == ("good",)
    assert not found.doubt
    assert "optimizer.clip_scope=group" in found.text


# Curves --------------------------------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_over_seeds_in_a_band_of_one_std(make):
    results = make()
    axes = {axis.key: axis for axis in AXES}
    for key, factor in (("steps", 10), ("images", 80), ("flops", 1e9)):
        base = next(lines("loss/denoise", axes[key], results, logs_of(results)))
        assert base.name == "base (baseline)"
        assert base.x == pytest.approx([factor * k for k in (1, 2, 3, 4)])
        assert base.y == pytest.approx([1 / k + 1 for k in (1, 2, 3, 4)])
        assert base.low == pytest.approx([1 / k for k in (1, 2, 3, 4)])
        assert base.high == pytest.approx([1 / k + 2 for k in (1, 2, 3, 4)])
    assert next(lines("loss/denoise", axes["seconds"], results, logs_of(results))).x == pytest.approx([3, 5, 7, 9])


def test_an_arm_keeps_its_colour_where_others_lack_the_key(make):
    results, key = make(), "loss/denoise"
    logs = {**logs_of(results), "base": {}}
    assert [one.slot for one in lines(key, AXES[0], results, logs)] == [1, 2, 3]


def test_without_stated_flops_there_is_no_curve_over_them(make):
    results = make(arms={label: {"flops_per_step": None, "flops": None} for label in FD})
    assert list(lines("loss/denoise", AXES[2], results, logs_of(results))) == []
    assert "nothing measured" in page(results)


def test_every_axis_can_be_chosen(make):
    html = page(make())
    for axis in AXES:
        assert f'id="over-{axis.key}"' in html
        assert f"#over-{axis.key}:checked ~ .charts .over-{axis.key}" in html
        assert html.count(f'class="over over-{axis.key}"') == 1 + len(METRICS)


def test_the_curve_of_a_metric_is_a_drawing_of_its_own(make):
    results = make()
    svg = as_file(metric_charts(results, logs_of(results))[0]["steps"])
    assert "http://www.w3.org/2000/svg" in svg and "toy FD" in svg
    assert "base (baseline): from " in svg
    assert all(f"{label}: from " in svg for label in ("good", "bad", "same"))
    assert svg.count("(baseline)</text>") == 1


def test_what_was_scored_at_the_end_alone_is_a_point(make):
    results = make()
    logs = {label: {seed: log[-1:] for seed, log in runs.items()} for label, runs in logs_of(results).items()}
    assert as_file(metric_charts(results, logs)[0]["steps"]).count("<circle") == len(FD)
    assert all(not reached(results, logs, metric) for metric in METRICS)  # a point is not a way to a target


def test_a_metric_that_no_run_followed_has_no_chart(make):
    results = make(metrics=["toy.fd", "toy.fd_all"])
    assert len(metric_charts(results, logs_of(results))) == 1


# How soon ------------------------------------------------------------------------------------------------------------


def test_the_target_is_what_the_baseline_reached_in_every_seed(make):
    """base ends at 1, 2 and 3, and every distance halves in ten steps: so 3 is reached 10 log2(fd / 3) steps after the
    end.
    """
    results = make()
    rows = {one.arm: one for one in reached(results, logs_of(results), "toy.fd")}
    assert {one.target for one in rows.values()} == {3.0}
    expected = {label: [40 + 10 * math.log2(fd / 3) for fd in values] for label, values in FD.items()}
    for label in ("base", "good", "same"):
        assert rows[label].steps.mean == pytest.approx(sum(expected[label]) / 3, abs=1e-9)
        assert rows[label].flops.mean == pytest.approx(rows[label].steps.mean * 1e8)
    assert (rows["bad"].got_there, rows["bad"].steps, rows["bad"].flops) == (
        1,
        None,
        None,
    )  # one of three is not a mean
    ratio = sum(expected["good"]) / sum(expected["base"])
    for one in (rows["good"].steps_of_baseline, rows["good"].flops_of_baseline):
        assert (one.ratio, one.comparison.verdict) == (pytest.approx(ratio), "within noise")
    assert rows["bad"].steps_of_baseline is None and rows["base"].steps_of_baseline is None


def test_sooner_and_dearer_are_said_with_their_p(make):
    halved = {"base": FD["base"], "good": [0.5, 1.01, 1.49]}
    results = make(halved, arms={"good": {"flops": 40e9, "flops_per_step": 1e9}})
    one = reached(results, logs_of(results), "toy.fd")[1]
    assert one.flops_of_baseline.ratio == pytest.approx(10 * one.steps_of_baseline.ratio)
    [_, row] = how_soon(results, logs_of(results), "toy.fd")
    assert re.fullmatch(r"0\.\d\d × sooner \(p [<=] 0\.0\d+\)", row["of_baseline"])
    assert re.fullmatch(r"\d\.\d\d × more \(p [<=] 0\.0\d+\)", row["flops_of_baseline"])


def test_flops_are_those_of_the_steps_until_then():
    """A quarter of a run at 1, another at 2, the rest at 4: and the average of it would be wrong everywhere but at the
    end.
    """
    ramp = record("ramp", flops=110.0, flops_per_step=2.75, flops_course=[1.0, 2.0, 4.0, 4.0])
    assert [ramp.flops_until(step) for step in (0, 5, 10, 15, 30, 40, 41)] == [0, 5, 10, 20, 70, 110, 110]
    assert record("even").flops_until(10) == 1e9
    assert record("silent", flops=None, flops_per_step=None, flops_course=[None]).flops_until(10) is None


def test_the_recipe_may_name_the_target(make):
    results = make(targets={"toy.fd": 8.0, "toy.recall": 0.9})
    rows = {one.arm: one for one in reached(results, logs_of(results), "toy.fd")}
    assert rows["base"].at_once and rows["base"].target == 8.0  # seed 0 begins at 8
    assert not rows["bad"].at_once
    assert all(one.steps_of_baseline is one.flops_of_baseline is None for one in rows.values())  # a bound is not a step
    assert all(one.steps is None and one.runs == 3 for one in reached(results, logs_of(results), "toy.recall"))
    said = Page(page(results)).text
    assert "at most" in said and "never" in said and "0 of 3" in said


@pytest.mark.parametrize(
    ("run", "target", "better", "step"),
    [
        ([(10, 8.0), (20, 2.0)], 4.0, "lower", 15.0),  # on the logarithm
        ([(10, 8.0), (20, 0.0)], 4.0, "lower", 15.0),  # a line, where there is no logarithm
        ([(10, 0.2), (20, 0.6)], 0.3, "higher", 12.5),
        ([(10, 8.0), (20, 9.0), (30, 2.0)], 9.0, "lower", 10.0),  # there from the first
        ([(10, 8.0), (20, 9.0)], 4.0, "lower", None),
    ],
)
def test_between_two_scores(run, target, better, step):
    assert first_at(run, target, better) == (None if step is None else pytest.approx(step))


# Words ---------------------------------------------------------------------------------------------------------------


def test_the_best_point_of_each_arm_is_named(make):
    """With arms a and b at two points each; and not where there is one point an arm."""
    figures = {"a x=1": [1.0, 2.0, 3.0], "a x=2": [1.5, 1.0, 1.0], "b x=1": [4.0, 4.0, 4.0], "b x=2": [5.0, 4.0, 4.0]}
    results = make(figures, arms={label: {"named": label[0], "baseline": f"a{label[1:]}"} for label in figures})
    said = summary(results, compared(results), [])
    assert "Best point of each arm by mean toy FD: a x=2 (1.17), b x=1 (4)." in said
    assert "Best point of each arm by mean toy recall: a x=1 (0.5), b x=1 (0.5)." in said
    apart = make(arms={label: {"named": label} for label in FD})
    assert not any("Best point of each arm" in sentence for sentence in summary(apart, compared(apart), []))
    grid = make(arms={label: {"named": ""} for label in FD})  # one list of points, no arms
    assert not any("Best point of each arm" in sentence for sentence in summary(grid, compared(grid), []))


def test_better_worse_and_within_noise_in_words(make):
    results = make()
    said = summary(results, compared(results), [])
    assert said[0] == "Budget: equal images, 320 for every arm, in each of 3 seeds (0, 1, 2)."
    assert said[1:] == [f"{KINDS[0]}: good.", f"{KINDS[1]}: bad.", f"{KINDS[3]}: same."]
    good, bad, same = findings(results, compared(results), [])
    assert good.words == "better on toy FD; no difference beyond noise on toy recall"
    assert bad.words == "worse on toy FD; no difference beyond noise on toy recall"
    assert same.words == "no difference beyond noise on toy FD and toy recall"
    assert good.details[0].startswith("toy FD (lower is better): -0.46, 95% interval ")


def test_a_duplicate_with_shifted_seeds_shows_no_difference(make):
    results = make({"base": [1.0, 2.0, 3.0, 2.2, 1.4], "duplicate": [2.1, 1.2, 2.9, 1.6, 2.0]})
    assert "No difference from the baseline beyond noise on any metric: duplicate." in Page(page(results)).text


def test_better_on_one_metric_and_worse_on_another_is_mixed(make):
    results = make({label: FD[label] for label in ("base", "good")})
    recall = {"base": [0.5, 0.6, 0.7], "good": [0.3, 0.41, 0.5]}
    rows = tuple(replace(r, scores={**r.scores, "toy.recall": recall[r.arm][r.seed]}) for r in results.runs)
    mixed = replace(results, runs=rows)
    assert f"{KINDS[2]}: good." in summary(mixed, compared(mixed), [])


def test_no_verdict_under_three_seeds(make):
    results = make({label: FD[label][:2] for label in ("base", "good")})
    assert f"{KINDS[4]}: good." in summary(results, compared(results), [])
    assert findings(results, compared(results), []) == []


# Caveats ------------------------------------------------------------------------------------------------------------


def test_an_honest_ablation_needs_no_caveat(make):
    assert causes(make()) == {}


def test_a_leak_of_the_target(make):
    results = make(arms={"good": {"leaks": {"found": ["input 1 to head of loss 'x'"], "unchecked": ""}}})
    caveat = causes(results)["the target leaks"]
    assert caveat.arms == ("good",)
    assert "input 1 to head of loss 'x'" in caveat.text
    doubted = {one.arm: one.doubts for one in findings(results, compared(results), [caveat])}
    assert doubted == {"good": ["the target leaks"], "bad": [], "same": []}
    assert any(said.endswith("its baseline: good.") for said in summary(results, compared(results), [caveat]))
    of_all = findings(results, compared(results), [replace(caveat, arms=("base",))])
    assert [one.doubts for one in of_all] == [["the target leaks in the baseline"]] * 3
    assert "doubtful: the target leaks" in Page(page(results)).text


@pytest.mark.parametrize("leaks", [None, {"found": [], "unchecked": "too large"}])
def test_a_leak_that_no_one_looked_for(make, leaks):
    assert causes(make(arms={"good": {"leaks": leaks}}))["leaks unknown"].arms == ("good",)


def test_what_the_recipe_of_an_arm_warns_of(make):
    caveat = causes(make(arms={"good": {"warnings": ["both views are the same image"]}}))["the recipe warns"]
    assert (caveat.arms, caveat.doubt) == (("good",), True)
    assert caveat.text == "both views are the same image."
    everywhere = make(arms={label: {"warnings": ["sigma_data is far off"]} for label in FD})
    assert causes(everywhere)["the recipe warns"].doubt is False


def test_a_collapse(make):
    results = make(entropy=0.25)
    caveat = causes(results)["diagnostics alarm"]
    assert caveat.arms == tuple(FD)
    assert "The monitors of loss.agree raised alarms at the end of training: the loss may have collapsed" in caveat.text
    assert "Entropy of the teacher: 0.25 is below 1 in base (3 of 3 runs)" in caveat.text
    assert diagnoses(results, logs_of(results))[0].value == 0.25
    assert "alarm in 3 of 3" in Page(page(results)).text


def test_failed_runs_and_too_few_seeds(make):
    found = causes(make(FD | {"bad": [1.0, 2.0, None]}))
    assert "1 of 3 runs failed" in found["failed runs"].text
    assert found["too few seeds"].arms == found["failed runs"].arms == ("bad",)
    assert "too few seeds" not in causes(make({k: [*v, 1.0] for k, v in FD.items()} | {"bad": [1.0, 2.0, 3.0, None]}))


def test_an_arm_with_the_runs_of_its_baseline(make):
    results = make({label: FD[label] for label in ("base", "same")})
    folders = {one.seed: one.folder for one in results.of("base")}
    duplicates = replace(results, runs=tuple(replace(one, folder=folders[one.seed]) for one in results.runs))
    assert causes(duplicates)["the same runs"].arms == ("same",)


def test_what_arms_do_not_share_is_said_from_their_whole_recipes(make):
    def answers(*differs):
        results = make(arms={"good": {"differs": list(differs)}})
        found = compared(results)
        said = {one.question: one for one in fairness(results, found, [])}
        return said["Same data and noise?"], said["Same evaluation?"], found["toy.fd"]["good"].p

    data, evaluation, paired = answers(("loss.match.weight", 0.1, 0.2))
    assert (data.good, evaluation.good) == (True, True)
    data, evaluation, same = answers(("noise_schedule.p_mean", -1.2, -0.4), ("sampler.steps", 12, 4))
    assert (data.good, evaluation.good, same) == (None, False, paired)
    assert "In good, the recipe sets other noise levels" in data.words
    assert "good is sampled or scored with a different sampler.steps" in evaluation.words
    for key in ("dataset.label_drop", "dataset.flip", "dataset.normalize"):
        data, _, same = answers((key, 0, 1))
        assert (
            data.good is None
            and "In good, the recipe drops labels, or flips or scales images, in another way" in data.words
        ), key
        assert same == paired, key
    for key in ("seed", "train.batch", "dataset.holdout", "data.fingerprint"):
        data, _, apart = answers((key, 0, 7))
        assert data.good is None and "Except in good" in data.words, key
        assert apart > paired, key  # Welch's: what the seeds share does not cancel


def test_every_setting_that_differs_is_listed(make):
    results = make(
        arms={"good": {"differs": [("pair_sampler.mask_ratio", 0.0, 0.5), ("loss.more", None, {"name": "x"})]}}
    )
    text = Page(page(results)).text
    assert "Every setting by which an arm differs from its baseline" in text
    assert "pair_sampler.mask_ratio" in text and "0.0 → 0.5" in text and 'loss.more none → (name "x")' in text
    assert "Every setting" not in Page(page(make())).text


def test_floors_stand_next_to_the_metrics(make):
    results = make()
    assert floors_sentence(results) == ""
    floored = tuple(replace(one, scores={**one.scores, "toy.fd_floor": 0.4}) for one in results.runs)
    said = "Floors, the scores of held-out real images: 0.4 on toy FD, at n = 360 images per side."
    assert floors_sentence(replace(results, runs=floored)) == said
    assert said in Page(page(replace(results, runs=floored))).text


def test_unequal_sizes(make):
    caveat = causes(make(arms={"good": {"sampled_parameters": 15_000}}))["unequal size"]
    assert caveat.text == "Parameters at sampling: good 1.5 times the baseline's (15 k vs. 10 k)."


def test_unequal_budgets_and_unequal_compute(make):
    assert causes(make(arms={"good": {"images": 400}}))["unequal budget"].arms == ("good",)
    assert causes(make(arms={"good": {"flops": 8e9}}))["unequal compute"].arms == ("good",)
    assert causes(make(arms={"good": {"images": 321, "flops": 4.01e9}})) == {}  # whole steps
    equal_flops = {"rule": "flops", "amount": 4e9, "seconds_per_step": {}}
    assert causes(make(arms={"good": {"images": 400}}, budget=equal_flops)) == {}
    assert causes(make(arms={"good": {"flops": 8e9}}, budget=equal_flops))["unequal budget"].arms == ("good",)


def test_a_machine_that_did_not_keep_the_pace(make):
    results = make(budget={"rule": "time", "amount": 8.0, "seconds_per_step": {}})
    assert causes(results) == {}
    slow = tuple(replace(one, seconds=12.0) if one.arm == "good" else one for one in results.runs)
    caveat = causes(replace(results, runs=slow))["unequal budget"]
    assert "good trained 1.5 times as long as base" in caveat.text


def test_metrics_at_different_numbers_of_images(make):
    results = make()
    fewer = tuple(
        replace(one, scores={**one.scores, "toy.n": 100.0}) if one.arm == "good" else one for one in results.runs
    )
    other = replace(results, runs=fewer)
    caveat = causes(other)["different n"]
    assert "n = 360 in base, bad, same; n = 100 in good" in caveat.text
    assert "Same evaluation? no" in Page(page(other)).text
    assert "Same evaluation? yes" in Page(page(results)).text


def test_runs_of_different_machines(make):
    results = make()
    file = results.folder / results.runs[0].folder / "environment.json"
    file.write_text(json.dumps({"python": "3.11", "device": "H100", "packages": {"torch": "2"}}))
    assert causes(results)["different machines"].text == "The runs differ in device: H100, cpu."


# Warnings of recipes, leaks of recipes -------------------------------------------------------------------------------


def test_arms_are_searched_for_leaks(ablation):
    base = ablation("[ablation]\nseeds = [0]\n").arms[0].recipe
    assert check_recipe(base) == LeakCheck()


def test_what_cannot_be_searched_says_why(ablation, monkeypatch):
    recipe = ablation("[ablation]\nseeds = [0]\n").arms[0].recipe
    monkeypatch.setattr("sddit.verify.leak", lambda recipe: 1 / 0)
    assert check_recipe(recipe).unchecked == "ZeroDivisionError: division by zero"
    monkeypatch.setattr("sddit.ablations.planning.measurements.MAX_PARAMETERS", 1)
    assert "parameters" in check_recipe(recipe).unchecked
    assert math.isfinite(MAX_PARAMETERS)
