"""Layers of a recipe: parents, the file, the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sddit.errors import Problem, SdditError
from sddit.recipes.merge import Merged, Origin, leaves, load, merge_into, override, parse_override

Write = Callable[[str, str], Path]


def refused(source: Path, *overrides: str) -> Problem:
    with pytest.raises(SdditError) as caught:
        load(source, overrides)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def nodes(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the dotted keys of all tables and values."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield ".".join((*path, key))
        yield from nodes(inner, (*path, key))


def laid(*layers: dict[str, Any]) -> dict[str, Any]:
    merged = Merged(None)
    for layer in layers:
        merge_into(merged, layer, Origin("somewhere"))
    assert set(merged.origins) == set(nodes(merged.tables))  # every table and value has an origin, and nothing else has
    return merged.tables


def test_a_child_changes_its_parent_key_by_key(write: Write) -> None:
    write("base/a.toml", "seed = 1\n[t]\nx = 1\ny = [1, 2]\n")
    child = write("b.toml", 'extends = "base/a.toml"\n[t]\ny = [3]\nz = 4\n')
    merged = load(child, ["t.z=5"])
    assert merged.tables == {"seed": 1, "t": {"x": 1, "y": [3], "z": 5}}
    assert {key: merged.place(key) for key in ("seed", "t.x", "t.y", "t.z")} == {
        "seed": "base/a.toml:1",
        "t.x": "base/a.toml:3",
        "t.y": "b.toml:3",
        "t.z": "command line",
    }
    assert {key: merged.origins[key].inherited for key in ("t.x", "t.y", "t.z")} == {
        "t.x": True,
        "t.y": True,  # under a command line a file is a parent as well
        "t.z": False,
    }
    assert not load(child).origins["t.y"].inherited


def test_the_path_of_a_parent_is_relative_to_its_child(write: Write) -> None:
    write("one/a.toml", "a = 1")
    write("one/two/b.toml", 'extends = "../a.toml"\nb = 2')
    assert load(write("c.toml", 'extends = "one/two/b.toml"\nc = 3')).tables == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_cycle_is_refused_and_shown(write: Write, length: int) -> None:
    for n in range(length):
        write(f"{n}.toml", f'extends = "{(n + 1) % length}.toml"\na = 1')
    found = refused(Path("0.toml"))
    way = " -> ".join(f"{n % length}.toml" for n in range(length + 1))
    assert (found.code, found.what) == ("SD-R120", f"inheritance cycle: {way}")
    assert found.where == f"{length - 1}.toml:1"


def test_a_long_chain_is_refused(write: Write) -> None:
    for n in range(100):
        write(f"{n}.toml", f'extends = "{n + 1}.toml"\na = 1')
    assert refused(Path("0.toml")).code == "SD-R120"


def test_a_missing_parent_is_named_with_its_line_and_neighbours(write: Write) -> None:
    write("base/fashion.toml", "a = 1")
    found = refused(write("a.toml", 'a = 1\nextends = "base/fashin.toml"'))
    assert (found.code, found.where) == ("SD-R121", "a.toml:2")
    assert "did you mean 'base/fashion.toml'?" in found.expect
    assert found.fix == 'extends = "base/fashion.toml"'


@pytest.mark.parametrize("value", ["1", '["a.toml", "b.toml"]', '"a.json"', '"/etc/a.toml"'])
def test_a_parent_is_one_relative_toml_file(write: Write, value: str) -> None:
    assert refused(write("a.toml", f"extends = {value}")).code == "SD-R103"


def test_a_shipped_recipe_is_extended_by_its_name(write: Write) -> None:
    from sddit.recipes.search import names

    name = next(name for name in names() if name.startswith("base/"))
    assert load(write("mine/a.toml", f'extends = "{name}"\na = 1')).tables.keys() > {"a", "train"}
    found = refused(write("b.toml", 'extends = "base/digit"'))
    assert (found.code, found.where) == ("SD-R121", "b.toml:1")
    assert "did you mean 'base/digits'?" in found.expect


def test_a_file_next_to_the_recipe_is_suggested_where_its_ending_is_missing(write: Write) -> None:
    write("mine.toml", "a = 1")
    found = refused(write("x.toml", 'extends = "mine"'))
    assert (found.code, found.fix) == ("SD-R121", 'extends = "mine.toml"')


@pytest.mark.parametrize("name", ["quickstart.toml", "quickstrat", "recipes/quickstart.toml", "base/quickstart.toml"])
def test_a_shipped_recipe_to_extend_is_suggested_by_its_name(write: Write, name: str) -> None:
    write("quickly.toml", "a = 1")
    found = refused(write("smart.toml", f'extends = "{name}"'))
    assert (found.code, found.fix) == ("SD-R121", 'extends = "quickstart"')
    assert "smart.toml" not in found.expect  # itself


def test_links_that_lead_to_each_other_are_named(write: Write, tmp_path: Path) -> None:
    (tmp_path / "one.toml").symlink_to("two.toml")
    (tmp_path / "two.toml").symlink_to("one.toml")
    (tmp_path / "gone.toml").symlink_to("nowhere.toml")
    for name, what in (("one", "a link that leads back to itself"), ("gone", "a broken link")):
        for path in (Path(f"{name}.toml"), write("mine.toml", f'extends = "{name}.toml"')):
            found = refused(path)
            assert (found.code, what in found.what, "did you mean" in found.expect) == ("SD-R121", True, False)
    (tmp_path / "good.toml").symlink_to(write("real.toml", "a = 1"))
    assert load("good.toml").tables == {"a": 1}


def test_a_folder_that_is_a_link_to_itself_is_named(write: Write, tmp_path: Path) -> None:
    (tmp_path / "shared").symlink_to("shared")
    for path in (Path("shared/one.toml"), write("mine.toml", 'extends = "shared/one.toml"')):
        found = refused(path)
        assert (found.code, found.fix) == ("SD-R121", "put the folder itself there")
        assert found.what == "'shared' is a link that leads back to itself"


def test_plugins_are_united_and_remember_their_folder(write: Write) -> None:
    write("base/a.toml", 'plugins = ["acme", "./p.py"]')
    merged = load(write("b.toml", 'extends = "base/a.toml"\nplugins = ["other", "acme"]'), ['plugins=["third"]'])
    assert [plugin.name for plugin in merged.plugins] == ["acme", "./p.py", "other", "acme", "third"]
    assert merged.plugins[1].path == Path("base/p.py")
    assert "plugins" not in merged.tables


@pytest.mark.parametrize("value", ['"acme"', "[1]", "{ a = 1 }"])
def test_plugins_are_a_list_of_names(write: Write, value: str) -> None:
    assert refused(write("a.toml", f"plugins = {value}")).code == "SD-R103"


def test_code_from_an_unrelated_folder_is_refused(write: Write) -> None:
    write("elsewhere/a.toml", 'plugins = ["./p.py"]')
    found = refused(write("mine/b.toml", 'extends = "../elsewhere/a.toml"'))
    assert (found.code, found.where) == ("SD-R130", "elsewhere/a.toml:1")


@pytest.mark.parametrize(
    ("parent", "child"), [("recipes", "recipes/ablations"), ("recipes", "recipes"), ("recipes/base", "recipes")]
)
def test_code_from_the_folders_around_is_not(write: Write, parent: str, child: str) -> None:
    write(f"{parent}/a.toml", 'plugins = ["./p.py"]')
    depth = "../" * child.count("/") + "../"
    merged = load(write(f"{child}/b.toml", f'extends = "{depth}{parent}/a.toml"'))
    assert merged.plugins[0].path.resolve() == Path(parent, "p.py").resolve()


def test_a_table_whose_name_changes_is_replaced() -> None:
    old = {"loss": {"a": {"name": "x", "weight": 2, "inner": {"k": 1}}}}
    assert laid(old, {"loss": {"a": {"name": "y"}}}) == {"loss": {"a": {"name": "y"}}}
    assert laid(old, {"loss": {"a": {"name": "x", "k": 1}}})["loss"]["a"]["weight"] == 2
    assert laid({"s": {"steps": 3}}, {"s": {"name": "y"}}) == {"s": {"steps": 3, "name": "y"}}


def test_a_schedule_given_whole_is_replaced_and_else_changed() -> None:
    old = {"t": {"momentum": {"start": 0.9, "end": 1.0, "shape": "cosine"}}}
    assert laid(old, {"t": {"momentum": {"start": 0.5, "end": 0.6}}})["t"]["momentum"] == {"start": 0.5, "end": 0.6}
    assert laid(old, {"t": {"momentum": {"start": 0.5}}})["t"]["momentum"]["shape"] == "cosine"
    assert laid(old, {"t": {"momentum": 0.5}}) == {"t": {"momentum": 0.5}}


def test_false_removes_a_table_and_only_a_table() -> None:
    assert laid({"loss": {"a": {"w": 1}, "b": {"w": 2}}}, {"loss": {"a": False}}) == {"loss": {"b": {"w": 2}}}
    assert laid({"t": {"flip": True}}, {"t": {"flip": False}}) == {"t": {"flip": False}}


def test_layers_are_not_changed_by_what_is_laid_over_them() -> None:
    parent = {"t": {"x": [1]}}
    laid(parent, {"t": {"x": [2], "y": 1}})
    assert parent == {"t": {"x": [1]}}


KEYS = st.sampled_from("abc")
TABLES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(KEYS, st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2), max_size=3),
    lambda inner: st.dictionaries(KEYS, inner | st.integers(0, 3), max_size=3),
    max_leaves=6,
)


@given(TABLES)
def test_merging_with_nothing_or_itself_changes_nothing(a: dict[str, Any]) -> None:
    assert laid(a) == laid(a, {}) == laid({}, a) == laid(a, a) == a


@given(TABLES, TABLES)
def test_what_is_laid_last_stands(a: dict[str, Any], b: dict[str, Any]) -> None:
    merged = laid(a, b)
    values = dict(leaves(merged))
    for key, value in leaves(b):
        assert value == {} or values[key] == value  # an empty table over a full one changes nothing


@given(TABLES, st.lists(st.tuples(KEYS, KEYS, st.integers(0, 9)), max_size=5, unique_by=lambda o: o[:2]), st.randoms())
def test_overrides_of_different_keys_commute(
    a: dict[str, Any], changes: list[tuple[str, str, int]], random: Any
) -> None:
    texts = [f"{table}.{key}={value}" for table, key, value in changes]
    shuffled = random.sample(texts, len(texts))
    results = []
    for order in (texts, shuffled):
        merged = Merged(None)
        merge_into(merged, a, Origin("file"))
        override(merged, order)
        results.append(merged.tables)
    assert results[0] == results[1]
    assert all(results[0][table][key] == value for table, key, value in changes)


LOSSES = """
[loss.denoise]
name = "plain"
ratio = 0.1
[loss.other]
name = "plain"
"""


def test_a_name_is_applied_before_the_keys_that_belong_to_it(write: Write) -> None:
    path = write("a.toml", LOSSES)
    expected = {"name": "masked", "ratio": 0.5}
    assert load(path, ["loss.denoise.ratio=0.5", "loss.denoise.name=masked"]).tables["loss"]["denoise"] == expected
    assert load(path, ["loss.denoise.name=masked", "loss.denoise.ratio=0.5"]).tables["loss"]["denoise"] == expected
    assert load(path, ["loss.denoise.name=masked"]).tables["loss"]["denoise"] == {"name": "masked"}


def test_an_override_removes_a_term(write: Write) -> None:
    assert load(write("a.toml", LOSSES), ["loss.other=false"]).tables["loss"].keys() == {"denoise"}


def test_an_override_of_a_part_follows_one_of_the_whole(write: Write) -> None:
    path = write("a.toml", "[t]\nm = 1.0\n")
    texts = ["t.m={ start = 0.0, end = 1.0 }", "t.m.shape=cosine"]
    assert load(path, texts).tables["t"]["m"] == {"start": 0.0, "end": 1.0, "shape": "cosine"}


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        (["train.steps=1", "train.steps=2"], ["train.steps=1"]),
        (["loss.other.ratio=1", "loss.other=false"], ["loss.other.ratio=1"]),
        (["t.m.start=1", "t.m=2"], ["t.m.start=1"]),
        (["loss.other=false", "loss.other.name=x", "loss.other.k=1"], ["loss.other=false", "loss.other.name=x"]),
    ],
)
def test_an_override_that_another_one_undoes_is_refused(write: Write, overrides: list[str], idle: list[str]) -> None:
    with pytest.raises(SdditError) as caught:
        load(write("a.toml", LOSSES), overrides)
    assert [(found.code, found.got) for found in caught.value.problems] == [("SD-R134", text) for text in idle]


def test_an_override_may_repeat_what_the_file_says(write: Write) -> None:
    assert load(write("a.toml", "seed = 0"), ["seed=0"]).place("seed") == "command line"  # a sweep over seeds


@pytest.mark.parametrize(
    "text",
    [
        "train.steps",
        "=1",
        "a b=1",
        "a..b=1",
        ".a=1",
        '"a"=1',
        "extends=b.toml",
        "a.b=1\nc=2",
        "ä=1",
        ".".join("a" * 17) + "=1",
    ],
)
def test_what_is_not_an_override_is_refused(text: str) -> None:
    with pytest.raises(SdditError) as caught:
        parse_override(text)
    assert caught.value.problems[0].code == "SD-R133"


@pytest.mark.parametrize(
    ("text", "code"), [("a=nan", "SD-R106"), ("a=2024-01-01", "SD-R105"), ("a={'x.y'=1}", "SD-R102")]
)
def test_odd_values_are_refused_on_the_command_line_too(text: str, code: str) -> None:
    with pytest.raises(SdditError) as caught:
        parse_override(text)
    assert (caught.value.problems[0].code, caught.value.problems[0].where) == (code, "command line")


def test_only_the_first_sign_of_equality_parts_key_and_value() -> None:
    assert parse_override("a.b=x=y").table == {"a": {"b": "x=y"}}


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ("masked", "acme/masked", True),
        ("acme/masked", "masked", True),
        ("acme/masked", "acme/masked", True),
        ("acme/masked", "other/masked", False),
        ("masked", "acme/other", False),
        ("masked", "other", False),
    ],
)
def test_settings_stay_where_the_name_means_the_same_component(old: str, new: str, kept: bool) -> None:
    tables = laid({"loss": {"a": {"name": old, "x": 1}}}, {"loss": {"a": {"name": new}}})
    assert tables == {"loss": {"a": {"name": new, **({"x": 1} if kept else {})}}}


def test_a_path_may_begin_with_an_environment_variable(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DATA", "/data/sets")
    merged = load(write("sub/a.toml", "[t]\npath = '$SOME_DATA/x'\n"))
    here = Path.cwd() / "sub"
    assert merged.absolute("t.path", "$SOME_DATA/x") == "/data/sets/x"
    assert merged.absolute("t.path", "$SOME_DATA") == "/data/sets"
    assert merged.absolute("t.path", "${SOME_DATA}/x") == "/data/sets/x"
    for literal in ("x/$SOME_DATA", "./$SOME_DATA", "$SOME_DATA.zip", "${SOME_DATA/x"):
        assert merged.absolute("t.path", literal) == str(here / literal)
    monkeypatch.setenv("SOME_DATA", "")
    with pytest.raises(SdditError, match=r"SD-R140(.|\n)*SOME_DATA is not set(.|\n)*a\.toml:2 \(t\.path\)"):
        merged.absolute("t.path", "$SOME_DATA/x")
