"""Arms x grid x pairs: each a whole recipe, and everything wrong with them said at once."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from sddit.ablations.planning.arms import expand
from sddit.ablations.planning.plan import make_plan
from sddit.errors import SdditError
from sddit.recipes.merge import load
from sddit.recipes.resolve import resolve
from sddit.testing import TOY_PAIR_RECIPE, TOY_RECIPE

ARMS = """
[ablation]
baseline = "plain"

[ablation.arms.plain]
pair_sampler.teacher = false
loss.agree = false

[ablation.arms.full]
"""


def arms(found):
    return {arm.label: arm.recipe for arm in found.arms}


def test_an_empty_arm_is_the_recipe_as_it_is(ablation):
    found = ablation(ARMS)
    assert arms(found)["full"].run_id == found.base.run_id
    assert arms(found)["plain"].run_id != found.base.run_id
    assert found.arms[1].changes == {}


def test_an_arm_changes_keys_and_removes_terms(ablation):
    plain = ablation(ARMS).arms[0]
    assert plain.changes == {"pair_sampler.teacher": False, "loss.agree": False}
    assert list(plain.recipe.losses) == ["denoise"]
    assert plain.recipe.pair_sampler.params.mask_ratio == 0.5  # what it does not say is inherited


def test_an_arm_is_what_the_same_overrides_make_of_the_recipe(ablation, write):
    plain = ablation(ARMS).arms[0].recipe
    by_hand = resolve(write(ARMS), ["pair_sampler.teacher=false", "loss.agree=false"])
    assert plain.run_id == by_hand.run_id


def test_an_ablation_without_its_arms_is_its_base(ablation, write):
    assert resolve(write(ARMS)).run_id == resolve(write("")).run_id == ablation(ARMS).base.run_id


def test_a_table_whose_name_changes_is_replaced(ablation):
    found = ablation("""
        [ablation.arms.toy]
        [ablation.arms.other]
        loss.agree = { name = "toy" }
    """)
    assert arms(found)["toy"].losses["agree"].params.weight == 0.5
    assert arms(found)["other"].losses["agree"].params.weight == 1.0  # its own default: weight 0.5 was of the other


def test_a_value_schedule_of_an_arm_is_taken_whole(ablation):
    found = ablation("""
        [ablation.arms.ramp]
        loss.agree.weight = { start = 0.0, end = 1.0 }
    """)
    assert found.arms[0].recipe.losses["agree"].params.weight.end == 1.0


def test_the_grid_is_crossed_with_the_arms_in_the_order_written(ablation):
    found = ablation("""
        [ablation.arms.b]
        [ablation.arms.a]
        loss.agree.weight = 0.25
        [ablation.grid]
        pair_sampler.mask_ratio = [0.5, 0.0]
        teacher.momentum = [0.9, { start = 0.9, end = 1.0 }]
    """)
    assert [arm.label for arm in found.arms] == [
        f"{arm} mask_ratio={ratio} momentum={momentum}"
        for arm in "ba"
        for ratio in ("0.5", "0.0")
        for momentum in ("0.9", "{ start = 0.9, end = 1.0 }")
    ]
    last = found.arms[-1]
    assert last.changes == {
        "loss.agree.weight": 0.25,
        "pair_sampler.mask_ratio": 0.0,
        "teacher.momentum.start": 0.9,
        "teacher.momentum.end": 1.0,
    }
    assert last.recipe.pair_sampler.params.mask_ratio == 0.0
    assert last.recipe.teacher.momentum.end == 1.0
    assert last.baseline == "b mask_ratio=0.0 momentum={ start = 0.9, end = 1.0 }"  # the first arm, at the same point


def test_pairs_go_together_and_are_crossed_with_the_rest(ablation):
    found = ablation("""
        [ablation]
        baseline = "mask_ratio=0.0 lr=0.001 weight=0.1"
        [ablation.grid]
        pair_sampler.mask_ratio = [0.0, 0.5]
        [[ablation.pairs]]
        optimizer.lr = [1e-3, 2e-3]
        loss.agree.weight = [0.1, 0.2]
    """)
    recipes = [arm.recipe for arm in found.arms]
    values = [
        (one.pair_sampler.params.mask_ratio, one.optimizer.params.lr, one.losses["agree"].params.weight)
        for one in recipes
    ]
    assert values == [(0.0, 1e-3, 0.1), (0.0, 2e-3, 0.2), (0.5, 1e-3, 0.1), (0.5, 2e-3, 0.2)]
    assert {arm.baseline for arm in found.arms} == {found.arms[0].label}  # one point of the grid, for all


def test_keys_with_the_same_suffix_get_longer_names(ablation):
    found = ablation("""
        [ablation.grid]
        loss.agree.weight = [0.1]
        loss.denoise.weight = [1.0]
    """)
    assert found.arms[0].label == "agree.weight=0.1 denoise.weight=1.0"


def test_the_start_of_a_schedule_is_named_with_what_it_starts(ablation):
    found = ablation("""
        [teacher]
        momentum = { start = 0.9, end = 1.0 }
        [ablation.grid]
        teacher.momentum.start = [0.9, 0.99]
    """)
    assert [arm.label for arm in found.arms] == ["momentum.start=0.9", "momentum.start=0.99"]


def test_without_arms_and_grid_there_is_one_arm(ablation):
    found = ablation("[ablation]\nseeds = [0, 1]")
    assert [(arm.label, arm.baseline) for arm in found.arms] == [("base", "base")]


def test_the_distance_by_every_extractor_is_the_default_metric(ablation):
    assert ablation("[ablation]").metrics == ("toy.fd",)
    assert ablation('[ablation]\nmetrics = ["toy.recall"]').metrics == ("toy.recall",)


def test_overrides_reach_every_arm_and_the_ablation_itself(ablation):
    found = ablation(ARMS, "train.batch=4", "ablation.seeds=[7]", "ablation.arms.plain.train.micro_batch=2")
    assert {arm.recipe.train.batch for arm in found.arms} == {4}
    assert found.settings.seeds == (7,)
    assert [arm.recipe.train.micro_batch for arm in found.arms] == [2, None]


def test_a_child_recipe_inherits_the_ablation(write, tmp_path):
    write(ARMS)
    child = tmp_path / "child.toml"
    child.write_text('extends = "abl.toml"\n[train]\nsteps = 2\n[ablation]\nseeds = [3]\n', encoding="utf-8")
    found = expand(load(child))
    assert [arm.recipe.train.steps for arm in found.arms] == [2, 2]
    assert found.settings.seeds == (3,)


GROUND = (
    TOY_RECIPE.replace("[loss.denoise]", "[loss.only]")
    .replace("[backbone]", "[backbone]\ndepth = 3")
    .replace("lr = 1e-3", "lr = 0.5")
    .replace("steps = 4\nbatch", "steps = 7\nbatch")
)
"""Another recipe than the toy ablation's, with values of its own throughout."""


@pytest.fixture
def layers(toys, tmp_path):
    """`layers(child, ablation)`: an ablation over the toy recipe, a child of it; with another recipe next to them."""

    def put(child, ablation):
        files = {
            "base.toml": TOY_PAIR_RECIPE,
            "other.toml": GROUND,
            "abl.toml": 'extends = "base.toml"\n' + dedent(ablation),
            "child.toml": 'extends = "abl.toml"\n' + dedent(child),
        }
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / "child.toml"

    return put


STACK = """
[evaluate]
samples = 12
features = ["toy"]

[ablation.arms.base]

[ablation.arms.other]
extends = "other.toml"
optimizer.lr = 0.25
"""


def test_an_arm_that_extends_a_recipe_is_that_recipe_under_what_the_ablation_says(layers):
    base, other = expand(load(layers("[train]\nbatch = 4", STACK), ["evaluate.previews=1"])).arms
    assert other.changes == {"extends": "other.toml", "optimizer.lr": 0.25}
    assert (list(base.recipe.losses), list(other.recipe.losses)) == (["denoise", "agree"], ["only"])
    assert other.recipe.backbone.params.depth == 3  # the other recipe's, where nothing else sets it
    assert other.recipe.train.steps == 7  # until the budget is cut
    assert other.recipe.evaluate.samples == base.recipe.evaluate.samples == 12  # the ablation's
    assert other.recipe.train.batch == base.recipe.train.batch == 4  # its child's
    assert other.recipe.evaluate.previews == base.recipe.evaluate.previews == 1  # the command line's
    assert other.recipe.optimizer.params.lr == 0.25  # the arm's own
    assert other.recipe.name == "child"


def test_an_arm_that_extends_what_the_ablation_extends_is_the_empty_arm(layers):
    found = expand(load(layers("", STACK.replace("other.toml", "base.toml").replace("optimizer.lr = 0.25", ""))))
    assert found.arms[0].recipe.run_id == found.arms[1].recipe.run_id == found.base.run_id


def test_the_budget_is_that_of_the_recipe_without_changes(layers, tmp_path):
    arms = make_plan(expand(load(layers("", STACK))), tmp_path).arms
    assert len({arm.images for arm in arms}) == 1
    assert [arm.cost.steps for arm in arms] == [arms[0].cost.steps] * 2


def test_a_child_may_add_an_arm_of_its_own_ground(layers):
    child = '[ablation.arms.mine]\nextends = "other.toml"\n[train]\nbatch = 4'
    mine = expand(load(layers(child, STACK))).arms[-1]
    assert (mine.label, list(mine.recipe.losses), mine.recipe.train.batch) == ("mine", ["only"], 4)
    assert mine.recipe.evaluate.samples == 12  # as for every arm


def test_the_grid_is_crossed_with_an_arm_of_its_own_ground(layers):
    found = expand(load(layers("[ablation.grid]\nbackbone.depth = [1, 2]", STACK)))
    assert [(arm.label, arm.recipe.backbone.params.depth) for arm in found.arms][2:] == [
        ("other depth=1", 1),
        ("other depth=2", 2),
    ]


def test_what_is_wrong_with_the_ground_names_its_line_and_the_arm(layers, tmp_path):
    path = layers("", STACK)
    (tmp_path / "other.toml").write_text(GROUND.replace("lr = 0.5", "lrr = 0.5"), encoding="utf-8")
    with pytest.raises(SdditError) as refused:
        expand(load(path))
    (problem,) = refused.value.problems
    assert problem.what == "arm 'other': unknown key 'optimizer.lrr'"
    assert "other.toml:" in problem.where


def test_inherited_keys_of_an_inactive_slot_are_idle_and_no_warning(ablation):
    plain = (
        ablation("""
        [ablation.arms.plain]
        loss.agree.weight = 0.0
    """)
        .arms[0]
        .recipe
    )
    assert "pair_sampler.teacher" not in plain.warnings
    assert plain.warnings == ()


def test_a_key_that_an_arm_sets_without_effect_is_warned_of(ablation):
    arm = (
        ablation("""
        [ablation.arms.plain]
        loss.agree.weight = 0.0
        loss.agree.momentum = 0.5
    """)
        .arms[0]
        .recipe
    )
    assert "loss.agree.momentum" in arm.idle
    assert any(text.startswith("loss.agree.momentum has no effect here (") for text in arm.warnings)


def problems(ablation, text, *overrides):
    with pytest.raises(SdditError) as refused:
        ablation(text, *overrides)
    return refused.value.problems


def test_the_problems_of_all_arms_come_together_each_naming_its_arms(ablation):
    found = problems(
        ablation,
        """
        [ablation.arms.a]
        train.batchh = 4
        [ablation.arms.b]
        backbone.depth = 0
        optimizer.lr = -1.0
        [ablation.arms.c]
        backbone.depth = 0
        """,
    )
    said = [(problem.code, problem.what) for problem in found]
    assert said == [
        ("SD-R102", "arm 'a': unknown key 'train.batchh'"),
        ("SD-R108", "arm 'b': 'backbone.depth' is out of range"),
        ("SD-R108", "arm 'b': 'optimizer.lr' is not allowed: must be at least 0"),
        ("SD-R108", "arm 'c': 'backbone.depth' is out of range"),
    ]
    file, line = found[0].where.split(":")
    assert Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1].strip() == "train.batchh = 4"


def test_one_mistake_of_many_arms_is_said_once(ablation):
    (found,) = problems(ablation, "[ablation.arms.a]\n[ablation.arms.b]\n[ablation.grid]\nbackbone.depth = [0]")
    assert found.what == "arms 'a depth=0', 'b depth=0': 'backbone.depth' is out of range"


def test_a_mistake_of_the_recipe_itself_names_no_arm(ablation):
    (found,) = problems(ablation, "[ablation.arms.a]\n[ablation.arms.b]", "backbone.depth=0")
    assert found.what == "'backbone.depth' is out of range"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("[ablation]\nseedss = [1]", "SD-R102", "unknown key 'ablation.seedss'"),
        ("[ablation]\nseeds = 3", "SD-R103", "'ablation.seeds' is of the wrong kind"),
        ("[ablation]\nseeds = []", "SD-R108", "'ablation.seeds' is out of range"),
        ("[ablation]\nseeds = [-1]", "SD-R108", "'ablation.seeds.0' is out of range"),
        ("[ablation]\nseeds = [1, 1]", "SD-R150", "a seed is listed twice"),
        ('[ablation]\nbudget = "steps"', "SD-R108", "'ablation.budget' has no such choice"),
        ('[ablation]\nbaseline = "b"\n[ablation.arms.a]', "SD-R150", "no arm 'b' to compare with"),
        ('[ablation]\nmetrics = ["fd"]', "SD-R150", "no metric 'fd'"),
        ('[ablation]\nmetrics = ["toy.fd", "toy.fd"]', "SD-R150", "metric 'toy.fd' is listed twice"),
        ('[ablation]\nmetrics = ["toy.fdd"]', "SD-R150", "no metric 'toy.fdd'"),
        ('[ablation]\nmetrics = ["toyy.fd"]', "SD-R150", "no metric 'toyy.fd'"),
        ("[ablation]\ntargets.toy.kid = 1", "SD-R150", "target of 'toy.kid', which is not a metric of this ablation"),
        ("[ablation.arms]\na = 3", "SD-R103", "'ablation.arms.a' is of the wrong kind"),
        ("[ablation.arms.a]\nplugins = ['x']", "SD-R150", "'plugins' is not allowed in [ablation.arms.a]"),
        ("[ablation.grid]\nextends = ['x.toml']", "SD-R150", "'extends' is not allowed in [ablation.grid]"),
        ("[ablation.arms.a]\nextends = 'x.toml'", "SD-R121", "arm 'a': no recipe 'x.toml' to extend"),
        ("[ablation.arms.a]\nextends = 3", "SD-R103", "arm 'a': 'extends' is of the wrong kind"),
        ("[ablation.arms.a]\nablation.seeds = [1]", "SD-R150", "'ablation' is not allowed in [ablation.arms.a]"),
        ("[ablation.arms.a]\ntrain.steps = 3", "SD-R150", "the budget decides how long an arm trains"),
        ("[ablation.grid]\ntrain.steps = [3]", "SD-R150", "the budget decides how long an arm trains"),
        ("[ablation.arms.a]\nloss.nothing = false", "SD-R134", "arm 'a': no 'loss.nothing' to remove"),
        ("[ablation.grid]\noptimizer.lr = 1e-3", "SD-R150", "'optimizer.lr' of [ablation.grid] needs a list of values"),
        ("[ablation.grid]\noptimizer.lr = []", "SD-R150", "'optimizer.lr' of [ablation.grid] needs a list of values"),
        ("[ablation.grid]\noptimizer = {}", "SD-R150", "'optimizer' of [ablation.grid] needs a list of values"),
        ("[ablation.grid]\noptimizer.lr = [1e-3, 1e-3]", "SD-R150", "2 arms are called 'lr=0.001'"),
        ('[ablation.grid]\n"optimizer.lr" = [1e-3]', "SD-R102", "'optimizer.lr' is one key with dots in it"),
        ("[[ablation.pairs]]", "SD-R150", "a table of pairs is empty"),
        ("[[ablation.pairs]]\noptimizer.lr = [1e-3]\ntrain.batch = [4, 8]", "SD-R150", "paired lists differ in length"),
        (
            "[[ablation.pairs]]\noptimizer.lr = [1e-3, 1e-4]\ntrain.batch = [4]",
            "SD-R150",
            "paired lists differ in length",
        ),
        ("[ablation.pairs]\noptimizer.lr = [1e-3]", "SD-R103", "'ablation.pairs' is of the wrong kind"),
        (
            "[ablation.grid]\ntrain.batch = [4]\n[[ablation.pairs]]\ntrain.batch = [4]",
            "SD-R150",
            "'train.batch' is crossed with itself",
        ),
        (
            "[ablation.arms.a]\nloss.agree = false\n[ablation.grid]\nloss.agree.weight = [0.1]",
            "SD-R150",
            "'loss.agree.weight' is set by arm 'a' and by [ablation.grid], which would undo the arm",
        ),
        (
            "[ablation.arms.a]\nteacher.momentum = { start = 0.5, end = 1.0 }\n"
            "[ablation.grid]\nteacher.momentum = [0.1]",
            "SD-R150",
            "'teacher.momentum' is set by arm 'a' and by [ablation.grid], which would undo the arm",
        ),
        (
            "[ablation.arms.a]\nevaluate.features = []\n[ablation.arms.b]",
            "SD-R150",
            "arm 'a': metric 'toy.fd' is not measured",
        ),
    ],
)
def test_a_mistake_is_named(ablation, text, code, said):
    found = problems(ablation, text)
    assert (code, said) in [(problem.code, problem.what) for problem in found]


def test_the_table_is_a_table(ablation):
    (found,) = problems(ablation, "", "ablation=3")
    assert (found.code, found.what) == ("SD-R103", "'ablation' must be a table")


def test_a_seed_must_stay_one(ablation):
    (found,) = problems(ablation, "[ablation]\nseeds = [1]\n[ablation.arms.a]\nseed = 9223372036854775807")
    assert (found.code, found.what) == ("SD-R107", "arm 'a': the seed is out of range")


def test_a_misspelt_table_of_the_ablation_is_reported_with_its_consequences(write):
    with pytest.raises(SdditError) as caught:
        expand(load(write(ARMS.replace("[ablation.arms.plain]", "[ablaiton.arms.plain]"))))
    assert [(p.code, p.what) for p in caught.value.problems] == [
        ("SD-R102", "unknown key 'ablaiton'"),
        ("SD-R150", "no arm 'plain' to compare with"),
    ]


def whats(ablation, text, *overrides):
    return [problem.what for problem in problems(ablation, text, *overrides)]


def test_problems_of_the_table_of_the_arms_and_of_the_metrics_come_together(ablation):
    found = whats(
        ablation,
        """
        [ablation]
        budget = "steps"
        seeds = [1, 1]
        baseline = "missing"
        metrics = ["toy.fdd", "toy.fd"]
        targets.toy.recal = 1
        [ablation.arms.sound]
        [ablation.arms.bad]
        loss.agree.weight = "x"
        optimizer.lrr = 1
        """,
    )
    assert sorted(found) == sorted(
        [
            "'ablation.budget' has no such choice",
            "a seed is listed twice",
            "no arm 'missing' to compare with",
            "no metric 'toy.fdd'",
            "target of 'toy.recal', which is not a metric of this ablation",
            "arm 'bad': 'loss.agree.weight' is of the wrong kind",
            "arm 'bad': unknown key 'optimizer.lrr'",
        ]
    )


def test_axes_that_cannot_be_crossed_come_together_and_the_others_are_tried(ablation):
    found = whats(
        ablation,
        """
        [ablation.arms.a]
        train.steps = 10
        [ablation.arms.b]
        optimizer.lr = 1e-3
        [ablation.grid]
        optimizer.lr = [1e-3, 2e-3]
        backbone.depth = [0, 2]
        [[ablation.pairs]]
        train.batch = [4, 8]
        teacher.momentum = [0.5]
        """,
    )
    assert sorted(found) == sorted(
        [
            "the budget decides how long an arm trains",
            "'optimizer.lr' is set by arm 'b' and by [ablation.grid], which would undo the arm",
            "paired lists differ in length",
            "arms 'a depth=0', 'b depth=0': 'backbone.depth' is out of range",
        ]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('baseline = "a lr=0.1"\n[ablation.arms.a]\n[ablation.grid]\noptimizer.lr = 0.1', "needs a list of values"),
        ('baseline = "a"\narms.a = 3\narms.b = {}', "'ablation.arms.a' is of the wrong kind"),
        ('baseline = "a"\n[ablation.armz.a]', "unknown key 'ablation.armz'"),
        ("metrics = 3\ntargets.toy.kid = 1", "'ablation.metrics' is of the wrong kind"),
        ('metrics = ["toy.kdi"]\ntargets.toy.kid = 1', "no metric 'toy.kdi'"),
        ("[ablation.arms.a]\nloss.agree = false\n[ablation.grid]\nloss.agree.weight = [0.1]", "would undo the arm"),
        ("[ablation.arms.a]\nablation.seeds = [1]", "is not allowed in"),
        ("[ablation.arms.a]\ntrain.steps = 1\noptimizer.warmup = 3", "the budget decides"),
    ],
)
def test_what_follows_from_a_mistake_is_not_said(ablation, text, said):
    (found,) = whats(ablation, f"[ablation]\n{text}", "train.steps=9")
    assert said in found


def test_what_follows_from_a_misspelt_metric_is_not_said_of_a_recipe_that_cannot_be_resolved(ablation):
    text = '[ablation]\nmetrics = ["toy.kdi"]\ntargets.toy.kid = 1'
    assert whats(ablation, text, "backbone.depth=0") == ["'backbone.depth' is out of range", "no metric 'toy.kdi'"]


def test_a_baseline_is_checked_despite_an_error_elsewhere(ablation):
    text = '[ablation]\nbaseline = "c"\nbudget = "steps"\n[ablation.arms.a]\ntrain.steps = 3'
    assert "no arm 'c' to compare with" in whats(ablation, text)
    assert len(whats(ablation, text.replace('"c"', '"a"'))) == 2


def test_a_device_on_which_an_arm_does_not_train_is_said_with_the_rest(write, monkeypatch):
    found = expand(load(write(ARMS)), device="cpu")  # the control
    kernel = type(found.base.attention.params)
    monkeypatch.setattr(kernel, "backward_devices", property(lambda self: ("cpu",)))
    with pytest.raises(SdditError) as refused:
        expand(load(write(ARMS), ['ablation.metrics=["toy.fdd"]']), device="cuda")
    device, metric = refused.value.problems
    assert device.what.startswith("arms 'plain', 'full': attention kernel ")
    assert metric.what == "no metric 'toy.fdd'"


def test_of_a_recipe_that_cannot_be_resolved_a_figure_is_known_still(ablation):
    found = whats(ablation, '[ablation]\nmetrics = ["toy.fdd", "other.fd"]', "backbone.depth=0")
    assert found == ["'backbone.depth' is out of range", "no metric 'toy.fdd'"]


def test_a_target_is_placed_where_it_stands(ablation):
    (found,) = problems(ablation, "[ablation]\nseeds = [1]\ntargets.toy.kid = 1")
    file, line = found.where.split(":")
    assert Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1] == "targets.toy.kid = 1"


def test_the_name_of_an_arm_has_a_bound(ablation):
    assert len(ablation(f"[ablation.arms.{'a' * 60}]").arms[0].label) == 60
    (found,) = problems(ablation, f"[ablation.arms.{'a' * 61}]")
    assert (found.code, found.got, found.expect) == ("SD-R150", "61 characters", "at most 60")
    assert found.where.rpartition(":")[2].isdecimal()


def test_arms_of_a_grid_and_of_pairs_are_counted_together(ablation):
    def text(values):
        return (
            "[ablation.arms.a]\n[ablation.arms.b]\n[ablation.grid]\nbackbone.depth = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n"
            f"[[ablation.pairs]]\nseed = {list(range(values))}"
        )

    (found,) = problems(ablation, text(51))
    assert (found.what, found.got) == ("too many arms", "1,020 arms")
    assert len(ablation(text(2)).arms) == 40


@pytest.mark.parametrize(("classes", "figure"), [(True, "class_accuracy"), (False, "nonsense")])
def test_class_accuracy_is_a_metric_of_an_extractor_that_classifies_alone(ablation, classes, figure):
    (found,) = problems(ablation, f'[ablation]\nmetrics = ["toy.{figure}"]')
    assert (found.code, found.what) == ("SD-R150", f"no metric 'toy.{figure}'")
    assert "class_accuracy" not in found.expect
    assert ("an extractor that measures class_accuracy" in found.fix) is classes


def test_class_accuracy_needs_two_classes(ablation, monkeypatch):
    params = type(ablation("[ablation]").base.features["toy"].params)
    monkeypatch.setattr(params, "own_figures", ("class_accuracy",))
    text = '[ablation]\nmetrics = ["toy.class_accuracy"]'
    assert ablation(text).metrics == ("toy.class_accuracy",)
    assert "no metric 'toy.class_accuracy'" in whats(ablation, text, "dataset.classes=1")
