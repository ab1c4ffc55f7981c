"""Hold the English of the project: words that a native reader would stumble over, and lines that are too long."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_COLUMNS = 120

BANNED = {
    r"told": "report, print, pass",
    r"tells?": "say, report, show",
    r"mend(s|ed|ing)?": "fix",
    r"anew": "again, restart",
    r"nobody": "no user, nothing",
    r"(some|any)body": "a user, the caller",
    r"person|people": "user",
    r"beside": "alongside, next to",
    r"l(ies|ying) (in|on|at|with|beside|behind|under|near)": "is in, is located in",
    r"(?<!there )(?<!where )(is|are|was) no (?!longer|more|such|one)[a-z]+": "is not a",
    r"share of": "fraction of",
    r"(?<!standard )deviations?": "standard deviation",
    r"pictures?": "image",
    r"left out": "omitted, not set, excluded",
    r"gives? it": "sets it, returns it",
    r"said so": "reported",
    r"of which": "whose",
    r"twins?": "counterpart, small version",
    r"spoil(s|t|ed|ing)?": "corrupt, damage",
    r"(go|goes|going|went) on": "continue",
    r"doom(s|ed)?": "mark for deletion",
    r"at hand": "available",
    r"so many": "this many, that many",
    r"retyped?": "correct",
    r"whatever": "any",
    r"of one's own": "own",
    r"by itself": "alone, automatically",
    r"as (was|is) meant": "as intended",
    r"the house": "the repository",
    r"where (one|it) looks": "where it is visible",
    r"(MOST|LEAST|LARGEST|SMALLEST)_[A-Z_]+": "MAX_, MIN_",
}
"""{pattern: what to write instead}; the words of CONTRIBUTING, section "Language"."""

WORDS = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in BANNED), re.IGNORECASE)

EXCEPTIONS: dict[tuple[str, str], str] = {
    **{
        ("CONTRIBUTING.md", word): "the list of words"
        for word in (
            "person",
            "somebody",
            "is no file",
            "deviation",
            "picture",
            "mend",
            "anew",
            "beside",
            "lies in",
            "left out",
            "tell",
            "twin",
            "spoil",
        )
    },
    ("plugins/sddit_standard/datasets/emoji.py", "people"): "a category of Unicode",
    ("tools/reliability.py", "largest_seconds"): "a key of the stored figures",
    ("tools/reliability.py", "spoilt"): "a key of the stored figures",
    ("recipes/ablations/leaking_loss.py", "beside"): "its bytes are part of published run ids",
    ("recipes/ablations/leaking_loss.py", "mends"): "its bytes are part of published run ids",
    ("recipes/ablations/leaking_loss.py", "mended"): "its bytes are part of published run ids",
    ("recipes/ablations/sanity.toml", "twin"): "the label of a published arm",
    ("docs/results/sanity/README.md", "twin"): "the label of a published arm",
    ("docs/results/sanity/README.md", "picture"): "a warning stored with the published runs",
    ("docs/results/teacher_momentum/README.md", "share of"): "a title stored with the published runs",
    ("docs/results/sanity/README.md", "mend"): "the name of a layer of a published arm",
    ("tests/test_shipped_ablations.py", "twin"): "the label of a published arm",
    ("tests/test_shipped_ablations.py", "mend"): "the name of a layer of a published arm",
    ("tests/core/distributed/test_world.py", "spoilt"): "a key of the stored figures",
    ("tests/plugins/test_distribution.py", "spoilt"): "a key of the stored figures",
}
"""{(file, word found, lower case): why it may stay there}."""


def texts_of_source(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each string, comment and defined name of a Python source. Names are split at underscores."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name.replace("_", " ")
        elif isinstance(node, ast.Assign):
            yield from ((node.lineno, target.id) for target in node.targets if isinstance(target, ast.Name))


def texts_of_page(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each line of a page, recipe or template."""
    yield from enumerate(text.splitlines(), start=1)


def sources() -> list[Path]:
    """Every Python file, except for the files that the tests of this very rule need."""
    folders = ("core", "plugins", "tools", "docs", "recipes", "tests")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")) if file != Path(__file__)]


def pages() -> list[Path]:
    """Every page, template and text that a user reads."""
    found = sorted(ROOT.glob("*.md"))
    found += sorted((ROOT / "docs").rglob("*.md"))
    found += sorted((ROOT / "recipes").rglob("*.toml"))
    return found + [
        file
        for suffix in ("*.j2", "*.toml", "*.txt")
        for file in sorted((ROOT / "core").rglob(suffix))
        if file.is_file()
    ]


def guides() -> list[Path]:
    """Every page that is written by hand."""
    written = [file for file in (ROOT / "docs").glob("*.md") if file.name not in ("errors.md", "reliability.md")]
    return [*ROOT.glob("*.md"), *sorted(written), ROOT / "docs" / "results" / "README.md"]


def found_in(file: Path) -> list[str]:
    """The banned words of a file, as `line: word`, without the exceptions."""
    text = file.read_text(encoding="utf-8")
    texts = texts_of_source(text) if file.suffix == ".py" else texts_of_page(text)
    name = str(file.relative_to(ROOT))
    return [
        f"{line}: {match.group(0)}"
        for line, part in texts
        for match in WORDS.finditer(part)
        if (name, match.group(0).lower()) not in EXCEPTIONS
    ]


@pytest.mark.parametrize("file", [*sources(), *pages()], ids=lambda file: str(file.relative_to(ROOT)))
def test_no_banned_word_is_used(file: Path) -> None:
    assert found_in(file) == []


@pytest.mark.parametrize("file", guides(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_line_of_a_guide_is_too_long(file: Path) -> None:
    """Ruff checks Python, and generated pages are as long as their numbers. Tables and code cannot be wrapped."""
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > MAX_COLUMNS]
    assert [line for line in long if not line.lstrip().startswith(("|", "[", "<"))] == []


def test_banned_words_are_noticed() -> None:
    """The negative control."""
    source = (
        '"""What a person is told."""\nMOST_BYTES = 1  # deviation\n'
        'def told(x):\n    return f"mend {x}, it is no file"\n'
    )
    words = sorted(match.group(0) for _, text in texts_of_source(source) for match in WORDS.finditer(text))
    assert words == ["MOST_BYTES", "deviation", "is no file", "mend", "person", "told", "told"]
    assert not WORDS.search("the standard deviation is no longer shared; a fraction of images")


def test_every_exception_is_needed() -> None:
    for name, word in EXCEPTIONS:
        assert word in (ROOT / name).read_text(encoding="utf-8").lower(), (name, word)
