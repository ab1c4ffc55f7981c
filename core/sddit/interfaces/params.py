"""Define the base class of all settings. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from sddit.errors import Problem
from sddit.interfaces.recipe_view import RecipeView


class Params(BaseModel):
    """Settings of one component: strict types, no unknown keys, finite numbers, every field described."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Yield what is wrong between this component and the other slots of the recipe. None by default."""
        return ()

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        """Yield names of own keys that have no effect in this recipe; a warning names those that are set."""
        return ()

    def warnings(self, recipe: RecipeView) -> Iterable[str]:
        """Yield one sentence for each combination that is allowed but probably a mistake, naming its keys."""
        return ()
