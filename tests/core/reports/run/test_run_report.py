"""The report: all its parts, in order, in one file that loads nothing, runs nothing and believes no text."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image

from sddit.evaluation.monitors import judge, losses_without_gradient, monitors
from sddit.evaluation.scores import Scores
from sddit.interfaces import Monitor
from sddit.reports.run.run_data import NextStep, ReportData, RunCost
from sddit.reports.run.run_report import write_report
from sddit.reports.run.score_table import score_rows
from sddit.reports.run.settings_table import settings
from sddit.reports.run.suggestions import suggestions

HOSTILE = """</script><img src=x onerror=1>"'{{7*7}}"""


def image(colour: tuple[int, int, int]) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def toy_scores(title: str = "Quarters", **changed) -> Scores:
    values = {
        "dimensions": 4,
        "training": 1437,
        "n": 360,
        "samples": 1000,
        "fd": 0.63,
        "fd_floor": 0.3,
        "fd_all": 0.55,
        "kid": 0.002,
        "kid_spread": 0.001,
        "kid_floor": 0.0001,
        "kid_floor_spread": 0.0005,
        "kid_subsets": 50,
        "kid_subset_size": 200,
        "neighbours": 3,
        "precision": 0.8,
        "precision_floor": 0.82,
        "recall": 0.75,
        "recall_floor": 0.8,
        "class_accuracy": 0.94,
        "class_accuracy_floor": 0.97,
    }
    return Scores(title=title, **(values | changed))


def rows(term: str, *, falling: bool = False, spike: float = 1.0, n: int = 60) -> list[dict[str, float]]:
    """Metrics of two terms, as the loop logs them."""
    found = []
    for i in range(n):
        wobble = 0.01 * (-1) ** i
        loss = 2 - i / n if falling else 1 + wobble
        found.append(
            {"step": 10.0 * (i + 1), "loss": loss + 0.5, "loss/denoise": loss, f"loss/{term}": 5.0 + wobble}
            | {f"loss/{term}@{b}": 5.0 + b for b in (1, 2)}
            | {"weight/denoise": 1.0, f"weight/{term}": 0.1, f"{term}/entropy": 3.0, f"{term}/unwatched": 1.0}
            | {"lr": 1e-3, "grad_norm": 0.5 * (spike if i == n // 2 else 1), "images_per_second": 800.0}
            | ({f"grad_ratio/{term}": 0.4} if i % 10 == 0 else {})
        )
    return found


def toy_run(text: str = "plain") -> ReportData:
    """A run in which every text is `text`."""
    return ReportData(
        title=text,
        summary={text: text},
        status=text,
        command=text,
        cost=RunCost(seconds=200.0, images_per_second=800.0, parameters=1234567, peak_memory=2**30, device=text),
        metrics=rows(text),
        grid=image((255, 0, 0)),
        previews=[(10, image((0, 255, 0))), (1000, image((0, 0, 255)))],
        scores={text: toy_scores(text)},
        monitors={text: [Monitor("entropy", text, text, low=4.0, reference=6.24), Monitor("gone", text, text)]},
        noise_bins=[text, text],
        recipe={"seed": 0, text: {text: text, "weight": {"start": 1.0, "end": 0.5, "shape": text}}},
        origins={text: text},
        environment={text: text},
        warnings=[text],
        next_steps=[NextStep(text, text)],
    )


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


# Safety --------------------------------------------------------------------------------------------------------------


def test_hostile_text_stays_text():
    page, plain = Page(write_report(toy_run(HOSTILE))), Page(write_report(toy_run()))
    assert page.elements == plain.elements  # not one new tag or attribute
    assert page.text.count(HOSTILE) >= 20
    assert "'49" not in page.text
    assert not [name for _, name, _ in page.values if name.startswith("on")]


def test_the_comparison_of_tags_has_teeth():
    html = write_report(toy_run())
    assert Page(html.replace("plain", HOSTILE)).elements != Page(html).elements


def test_text_that_would_fool_the_eye_is_shown_escaped():
    html = write_report(toy_run("a\u202eb\x1b[0m\x00"))
    assert not {"\u202e", "\x1b", "\x00"} & set(html)
    assert "a\\u202eb\\x1b[0m\\x00" in Page(html).text


def test_the_page_loads_nothing_and_runs_nothing():
    page = Page(write_report(toy_run()))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", "content", policy) in page.values
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    links = [value for _, name, value in page.values if name in ("src", "href", "srcset", "xlink:href")]
    assert len(links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in links)


# Content -------------------------------------------------------------------------------------------------------------


def test_parts_stand_in_the_order_a_reader_wants():
    run = toy_run()
    html = write_report(run)
    first = base64.b64encode(run.grid or b"").decode()
    order = [
        "Look here first",
        first,
        "How close to real images",
        "Samples during training",
        "Losses</h2>",
        "by noise level</h2>",
        "Diagnostics</h2>",
        "Optimisation</h2>",
        "Recipe</h2>",
        "Cost</h2>",
        "Suggestions",
    ]
    places = [html.index(part) for part in order]
    assert places == sorted(places)
    text = Page(html).text
    for part in ("2.1 times the floor", "FD-plain", "3 min 20 s", "1,234,567", "1,024 MiB", "1 → 0.5 (shape plain)"):
        assert part in text
    for chart in ("loss.denoise", "loss.plain by noise level", "weight × loss", "plain/unwatched", "gradient norm"):
        assert chart in text


def test_fid_is_named_only_to_say_that_it_is_not():
    assert Page(write_report(toy_run())).text.replace("None of them is FID", "").count("FID") == 0


def test_a_run_with_nothing_but_a_title_still_has_a_report():
    bare = ReportData(title="t", summary={}, status="stopped", command="c", cost=RunCost(seconds=1), metrics=[])
    text = Page(write_report(bare)).text
    assert "not stated" in text
    for absent in ("Look here first", "How close", "Samples during training", "Losses", "Diagnostics", "Recipe"):
        assert absent not in text


# Words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "bounds", "state"),
    [
        ([1.0] * 20, {"low": 0.5, "high": 2.0}, "healthy"),
        ([5.0] * 18 + [1.0, 1.0], {"low": 0.5, "high": 2.0}, "healthy"),  # only the end of the run counts
        ([1.0] * 18 + [5.0, 5.0], {"high": 2.0}, "look here"),
        ([1.0] * 20, {"low": 1.5}, "look here"),
        ([1.0] * 19 + [math.nan], {"low": 0.5}, "look here"),
        ([1.0] * 20, {}, "no alarm set"),
        ([], {"low": 0.5}, "not measured"),
    ],
)
def test_verdicts(values, bounds, state):
    metrics = [{"step": float(i), "a/entropy": value} for i, value in enumerate(values)]
    assert judge("a/entropy", Monitor("entropy", "Entropy", "high", **bounds), metrics).state == state


@pytest.mark.parametrize(
    ("ratios", "weights", "state", "why"),
    [
        ([0.4] * 10, [1.0] * 10, "healthy", ""),
        ([0.0] * 10, [1.0] * 10, "look here", "it is 0 in every measurement, so this loss never changed the network"),
        ([0.0, 0.3], [1.0] * 2, "healthy", ""),  # a head that starts at zero
        ([0.4] * 9 + [0.0], [1.0] * 10, "healthy", ""),  # a last stage without masks
        ([0.4] * 5 + [0.0] * 5, [1.0] * 10, "look here", "0 is below 0.01"),
        ([0.0065] * 10, [1.0] * 10, "look here", "0.0065 is below 0.01"),
        ([0.04] * 10, [0.1] * 10, "healthy", ""),  # a shipped loss with a weight of 0.1
        ([4.0] * 10, [1.0] * 10, "look here", "4 is above 3"),
        ([math.nan] * 10, [1.0] * 10, "look here", "it is not a finite number"),
        ([0.4] * 5 + [0.004] * 5, [1.0] * 5 + [0.01] * 5, "healthy", ""),  # a weight that fades out
        ([0.004] * 5 + [0.4] * 5, [0.01] * 5 + [1.0] * 5, "healthy", ""),
        ([0.4] * 5 + [0.004] * 5, [1.0] * 10, "look here", "0.004 is below 0.01"),
    ],
)
def test_a_gradient_outside_its_range_is_marked(ratios, weights, state, why):
    metrics = [
        {"step": float(step), "grad_ratio/x": ratio, "weight/x": weight}
        for step, (ratio, weight) in enumerate(zip(ratios, weights, strict=True))
    ]
    metrics.append({"step": 99.0, "weight/x": 50.0})  # without a measurement
    found = judge("grad_ratio/x", monitors({}, metrics)["grad_ratio/x"], metrics)
    assert (found.state, found.why) == (state, why)
    assert losses_without_gradient(metrics) == (["x"] if "never" in why else [])
    text = Page(write_report(replace(toy_run(), metrics=metrics, monitors={}, warnings=[]))).text
    assert (why or "nothing") in text if why else "Look here first" not in text


def test_an_alarm_has_enough_digits_to_separate_value_and_bound():
    metrics = [{"step": 1.0, "a/entropy": 6.184}]
    why = judge("a/entropy", Monitor("entropy", "Entropy", "high", high=6.1759), metrics).why
    assert why == "6.184 is above 6.1759"


def test_an_alarm_is_reported_at_the_top_and_among_the_next_steps():
    run = toy_run()
    text = Page(write_report(run)).text
    assert text.index("plain: 3 is below 4.") < text.index("How close to real images")
    assert "Check the settings of loss.plain." in text
    calm = replace(run, monitors={"plain": [Monitor("entropy", "plain", "plain", low=1.0)]}, warnings=[])
    assert "Look here first" not in Page(write_report(calm)).text


def test_scores_in_words():
    words = [row.words for row in score_rows(toy_scores())]
    assert words[0] == "2.1 times the floor"
    assert words[1] == "all samples: compare at n = 1,000 only"
    assert "within the spread" in words[2]
    assert "above the spread" in list(score_rows(toy_scores(kid=0.01)))[2].words
    assert words[-1] == "94% of samples show the requested class"
    assert len(list(score_rows(toy_scores(class_accuracy=None, class_accuracy_floor=None)))) == len(words) - 1


def test_scores_that_an_earlier_version_did_not_take_have_no_row():
    later = {
        "density": 0.9,
        "density_floor": 1.0,
        "coverage": 0.5,
        "coverage_floor": 0.9,
        "copied": 0.2,
        "copied_floor": 0.05,
    }
    before, after = (list(score_rows(toy_scores(**values))) for values in ({}, later))
    new = [row for row in after if row not in before]
    assert [row.name for row in new] == ["Density (k = 3)", "Coverage (k = 3)", "Near copies"]
    assert [(row.value, row.floor, row.n) for row in new] == [
        ("0.90", "1.00", 360),
        ("0.50", "0.90", 360),
        ("0.200", "0.050", 1000),
    ]
    assert new[2].words == "20.0% of samples are as close to a training image as 5.0% of held-out real images"


def advice(**changed) -> list[str]:
    base = {"metrics": rows("aux"), "scores": {"q": toy_scores()}, "monitors": {}}
    return [f"{step.text} {step.command}" for step in suggestions(replace(toy_run(), **(base | changed)), [])]


def test_a_sound_run_needs_no_advice():
    assert advice() == []


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"metrics": rows("aux", falling=True)}, "loss.denoise was still falling"),
        ({"metrics": rows("aux", spike=20)}, "At step 310 the gradient norm was 20 times its median"),
        ({"scores": {"q": toy_scores(precision=0.4)}}, "look unlike any real image"),
        ({"scores": {"q": toy_scores(recall=0.4)}}, "miss part of the variety"),
        ({"scores": {"q": toy_scores(copied=0.2, copied_floor=0.05)}}, "evaluate RUN --copies"),
    ],
)
def test_advice_follows_the_numbers(changed, word):
    [only] = advice(**changed)
    assert word in only


def test_a_run_at_the_floor_is_not_advised_to_continue():
    assert advice(metrics=rows("aux", falling=True), scores={"q": toy_scores(fd=0.31)}) == []


def test_settings_name_their_origins_and_read_like_a_recipe():
    run = replace(
        toy_run(),
        recipe={
            "seed": 0,
            "train": {"steps": 1000, "compile": False, "micro_batch": None},
            "loss": {"a": {"weight": {"start": 0.5, "end": 1.0, "from": 0, "until": 0.3}, "views": ["x", "y"]}},
            "ema": {},
            "teacher": {"momentum": {"start": 0.996, "end": 1.0}},
        },
        origins={
            "train.steps": "command line",
            "teacher.momentum.start": "recipes/y.toml:9",
            "loss.a": "recipes/x.toml:3",
            "seed": "default",
        },
    )
    found = {setting.key: (setting.value, setting.origin, setting.untouched) for setting in settings(run)}
    assert found == {
        "seed": ("0", "default", True),
        "train.steps": ("1000", "command line", False),
        "train.compile": ("false", "default", True),
        "train.micro_batch": ("none", "default", True),
        "loss.a.weight": ("0.5 → 1 (from 0, until 0.3)", "recipes/x.toml:3", False),
        "loss.a.views": ("x, y", "recipes/x.toml:3", False),
        "ema": ("none", "default", True),
        "teacher.momentum": ("0.996 → 1", "recipes/y.toml:9", False),
    }
