"""The table `[ablation]` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sddit.interfaces import Params

BudgetRule = Literal["images", "flops", "time"]


class AblationSettings(Params):
    """`[ablation]`: arms and a grid of changes to this recipe, run with the same seeds and the same budget."""

    question: str = Field("", description="What the ablation asks, in a sentence: it heads the report.")
    seeds: tuple[Annotated[int, Field(ge=0, le=10**6)], ...] = Field(
        (0, 1, 2, 3, 4),
        min_length=1,
        strict=False,
        description="Added to the seed of the recipe, or of the arm. Every arm is run with all of them.",
    )
    baseline: str = Field("", description="The arm that the others are compared with. Empty: the first one.")
    metrics: tuple[str, ...] = Field(
        (),
        strict=False,
        description='Figures to compare, such as "classifier.fd": an extractor of [evaluate] and a figure of its scores. '
        "None: the distance by every extractor.",
    )
    targets: dict[str, dict[str, float]] = Field(
        {},
        description="Scores to reach, such as targets.classifier.fd = 10. The report says after how many steps and FLOPs each arm "
        "got there, for metrics that [evaluate] takes while training too. Left out: what the baseline reached in every seed.",
    )
    budget: BudgetRule = Field(
        "images",
        description="What every arm has as much of as the recipe without changes: images, flops (by the components' "
        "formulas), or time (measured once, before the first run).",
    )
    tuning: str = Field(
        "",
        description="How the settings of each arm were chosen, and with how much effort: the report quotes it. Every arm should "
        "have had the same, the baseline too.",
    )
    published: str = Field(
        "",
        description="The folder, relative to the recipe, in which results of it were published (`sddit-run publish`): the command "
        "and the report compare this ablation with them. Changes no run; a folder that is not there is passed over.",
    )
    arms: dict[str, dict[str, Any]] = Field(
        {}, description="[ablation.arms.LABEL]: changes to the recipe that belong together. Empty: the recipe as it is."
    )
    grid: dict[str, Any] = Field({}, description="Lists of values by key, crossed with the arms and with each other.")
    pairs: tuple[dict[str, Any], ...] = Field(
        (),
        strict=False,
        description="[[ablation.pairs]]: lists of one length whose values go together, first with first; crossed with the rest.",
    )
