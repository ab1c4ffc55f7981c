"""Overrides that stand in for what a shipped recipe reads and a test has not: its data, or the run it starts from."""

from __future__ import annotations

from pathlib import Path

from sddit.recipes.merge import load

RECIPES = Path(__file__).parents[1] / "recipes"

RUNS_OF = ("start", "snapshot")  # tables that name another run
DECLARED = "dataset.name=declared"
IMAGENET_LATENTS = (
    DECLARED,
    "dataset.image=[4, 32, 32]",
    "dataset.classes=1000",
    "dataset.label_drop=0.1",
    "codec=false",
)
IMAGENET_PIXELS = (DECLARED, "dataset.image=[3, 256, 256]", "dataset.classes=1000", "dataset.label_drop=0.1")
OWN_IMAGES = (DECLARED, "dataset.image=[3, 64, 64]", "dataset.classes=10", "evaluate.features=[]")
EMOJI_LATENTS = (DECLARED, "dataset.image=[16, 8, 8]", "dataset.classes=8", "codec=false", "evaluate.features=[]")


def stand_ins(recipe: Path) -> list[str]:
    """Return the overrides with which a shipped recipe can be resolved here."""
    data: tuple[str, ...] = ()
    if "imagenet256" in recipe.parts:
        data = IMAGENET_LATENTS if "codec" in load(recipe).tables else IMAGENET_PIXELS
    elif recipe.name == "folder.toml":
        data = OWN_IMAGES
    elif recipe.name == "emoji-latent.toml":
        data = EMOJI_LATENTS
    return [*data, *(f"{table}=false" for table in RUNS_OF if table in load(recipe).tables)]
