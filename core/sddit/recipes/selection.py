"""Find the components that a recipe chooses, and check their tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sddit.errors import Problem, SdditError, nearest, one_of
from sddit.interfaces import Component, Params, Selected
from sddit.plugins.discovery import plugin_name, plugins_named_by
from sddit.plugins.host import Host
from sddit.plugins.registry import Registry
from sddit.recipes.field_types import keys
from sddit.recipes.merge import Merged
from sddit.recipes.parsing import quoted
from sddit.recipes.validation import validated

P = TypeVar("P", bound=Params)


# Tables that choose one component, and the registry these choose from.
SLOTS = {
    "backbone": "backbones",
    "noise_schedule": "noise_schedules",
    "pair_sampler": "pair_samplers",
    "dataset": "datasets",
    "sampler": "samplers",
    "attention": "attention",
    "guidance": "guidances",
    "optimizer": "optimizers",
    "codec": "codecs",
}
OPTIONAL = ("codec",)  # slots that may be empty
NOT_INSTALLED = "SD-P210"
DECLARED = (
    "dataset",
    "codec",
)  # slots whose files and packages a plan can do without, if the data set declares its facts
# Only for what is neutral: these prefer no method.
DEFAULTS = {"attention": "sdpa", "guidance": "none", "optimizer": "adamw"}
# Tables of labelled tables, and the registry these choose from.
LABELLED = {"loss": "losses", "tracker": "trackers", "features": "features"}
FEATURES = "evaluate.features"

LABEL = re.compile(r"[a-z][a-z0-9_-]*")


class Selector:
    """Selects the components of one recipe and gathers what is wrong, so that all problems are reported together."""

    def __init__(self, merged: Merged, host: Host) -> None:
        self.merged = merged
        self.host = host
        self.found: dict[Problem, bool] = {}  # whether it blocks; an unknown key does not: its table is checked as well
        self.used: dict[str, str] = {}  # plugin -> its version, or the hash of its file
        self.unmet: list[Problem] = []  # what a plan needs only if the data are not declared: paths and packages
        self._broken: set[str] = set()  # the plugins that did not load
        self._use_plugins()

    @property
    def is_blocked(self) -> bool:
        """Return whether something cannot be built."""
        return any(self.found.values())

    def problems(self) -> list[Problem]:
        """Return each problem once: unknown keys first, then what blocks."""
        return sorted(self.found, key=lambda problem: self.found[problem])

    def add(self, problems: Iterable[Problem], *, blocks: bool = True) -> None:
        for problem in problems:
            self.found.setdefault(problem, blocks)

    def slots(self) -> dict[str, Selected[Any]]:
        """Return the component of each slot, without those that are empty or have problems."""
        chosen = {slot: one for slot in SLOTS if (one := self._slot(slot))}
        if codec := chosen.get("codec"):
            with suppress(SdditError):  # of missing weights, which the check of its facts reports
                chosen["codec"] = replace(codec, params=codec.params.fingerprinted())
        return chosen

    def labelled(self, table: str) -> dict[str, Selected[Any]]:
        """Return the components of `[loss.LABEL]`, `[tracker.LABEL]` or `[features.LABEL]`, without those that have
        problems.

        The name of an extractor is its label if its table has none, as if `evaluate.features` named it alone.
        """
        kind, is_extractor = LABELLED[table], table == "features"
        return {
            label: chosen
            for label, settings in self.labels(table).items()
            if (chosen := self.choose(f"{table}.{label}", settings, kind, label if is_extractor else ""))
        }

    def features(self, names: tuple[str, ...], tables: Mapping[str, Selected[Any]]) -> dict[str, Selected[Any]]:
        """Return the extractors that `[evaluate]` names: by the label of a table `[features.LABEL]`, else by name, and
        by qualified name where two share one."""
        given = _table(self.merged.tables.get("features"))
        plain = [name for name in dict.fromkeys(names) if name not in given]
        chosen = [one for name in plain if (one := self.choose(FEATURES, {"name": name}, "features"))]
        short = [*tables, *(one.component.name for one in chosen)]
        labelled = {label: tables[label] for label in names if label in tables}
        return {
            **{c.component.name if short.count(c.component.name) == 1 else c.component.qualified: c for c in chosen},
            **{key: replace(one, params=one.params.fingerprinted()) for key, one in labelled.items()},
        }

    def labels(self, table: str) -> dict[str, Any]:
        """Return the labelled tables of `table` that are valid."""
        tables = self.merged.tables.get(table, {})
        if not isinstance(tables, dict):
            got = f"{table} = {quoted(tables)}"
            self.problem("SD-R103", f"{table!r} must be a table of labelled tables", table, got, f"[{table}.LABEL]")
            return {}
        if table == "loss" and not tables:
            self.problem("SD-R101", "no [loss.LABEL] in the recipe", "", fix="sddit-run show losses")
        return {label: value for label, value in tables.items() if self._is_valid(table, label, value, tables)}

    def choose(self, key: str, table: Any, kind: str, default: str = "") -> Selected[Any] | None:
        """Return the component that a table names, with its settings; None after a problem."""
        registry: Registry[Any] = self.host.registries.all()[kind]
        if not isinstance(table, dict):
            got = f"{key.rpartition('.')[2]} = {quoted(table)}"
            self.problem("SD-R103", f"{key!r} must be a table", key, got, f'[{key}] with name = "..."')
            return None
        name = table.get("name", default)
        if not isinstance(name, str) or not name:
            self._unnamed(key, table, registry)
            return None
        if name.rpartition("/")[0] in self._broken:
            return None
        component = self._component(registry, name, key if key == FEATURES else f"{key}.name")
        if component is None:
            return None
        settings = {name: value for name, value in table.items() if name != "name"}
        fix = f"sddit-run show {kind} {component.name}"
        place = f"features.{component.name}" if key == FEATURES else key  # where what it lacks is to be written
        params = self.settings(component.params, settings, place, fix, also=("name",))
        return None if params is None else Selected(component, params)

    def settings(self, model: type[P], table: Any, key: str, fix: str = "", also: Sequence[str] = ()) -> P | None:
        """Return a table as settings, with absolute paths; None after problems. `also` are further allowed keys."""
        if not isinstance(table, dict):
            got = f"{key} = {quoted(table)}"
            self.problem("SD-R103", f"{key!r} must be a table", key, got, f"[{key}]")
            return None
        found: P | None
        settings, usable = table, True
        try:
            settings = {**table, **absolute_paths(model, table, self.merged, key)}
        except SdditError as unknown:
            if self.merged.planned and key in DECLARED:
                self.unmet += unknown.problems
            else:
                self.add(unknown.problems)
                usable = False  # its other keys are checked as well
        try:
            found = validated(
                model, settings, table=key, where=self.merged.place, fix=fix, also=also, typed=self.merged.typed
            )
        except SdditError as failure:
            found = with_corrected_keys(model, settings)
            self.add(failure.problems, blocks=found is None)
        return found if usable else None

    def problem(self, code: str, what: str, key: str, got: str = "", expect: str = "", fix: str = "") -> None:
        """Add a problem of the value or table at a dotted key."""
        self.add([Problem(code, what, self.merged.place(key), got, expect, fix)])

    def _use_plugins(self) -> None:
        """Load what `plugins` names and the plugins of qualified names (`acme/masked`), before any lookup."""
        for plugin in self.merged.plugins:
            row = plugin_name(plugin.path) if plugin.is_file else plugin.name
            if self._use(plugin.name, row, plugin.folder, plugin.where):
                self.used[row] = self.host.rows[row].identity
        for key, name in self._names():
            for plugin_of_name in plugins_named_by([name]):
                self._use(plugin_of_name, plugin_of_name, None, self.merged.place(key))

    def _use(self, name: str, row: str, folder: Path | None, where: str) -> bool:
        """Load a plugin and return whether it is loaded. One that failed before is not reported again."""
        if row in self._broken:
            return False
        try:
            self.host.use([name], folder, where=where)
        except SdditError as failure:
            self.add(failure.problems)
            self._broken.add(row)
            return False
        return True

    def _names(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted key, name) of every component that the recipe names, as far as its tables are well formed."""
        tables = self.merged.tables
        labelled = [(f"{t}.{label}", inner) for t in LABELLED for label, inner in _table(tables.get(t)).items()]
        for key, table in [*((slot, tables.get(slot)) for slot in SLOTS), *labelled]:
            if isinstance(name := _table(table).get("name"), str) and not _is_code(name):
                yield f"{key}.name", name
        features = _table(tables.get("evaluate")).get("features")
        for name in features if isinstance(features, list) else []:
            if isinstance(name, str) and not _is_code(name):
                yield FEATURES, name

    def _slot(self, slot: str) -> Selected[Any] | None:
        kind = SLOTS[slot]
        if slot not in self.merged.tables and slot in OPTIONAL:
            return None
        if slot not in self.merged.tables and slot not in DEFAULTS:
            names = ", ".join(self.host.registries.all()[kind].names())
            self.problem("SD-R101", f"no [{slot}] in the recipe", "", "", f"one of {names}", f"sddit-run show {kind}")
            return None
        return self.choose(slot, self.merged.tables.get(slot, {}), kind, DEFAULTS.get(slot, ""))

    def _is_valid(self, table: str, label: str, value: Any, others: Mapping[str, Any]) -> bool:
        key = f"{table}.{label}"
        if value is False:
            known = [name for name, other in others.items() if isinstance(other, dict)]
            self.problem("SD-R134", f"no {key!r} to remove", key, f"{key} = false", one_of(label, known))
        elif not isinstance(value, dict):
            got, fix = f"{label} = {quoted(value)}", f"write [{table}.LABEL] and under it {label} = {quoted(value)}"
            self.problem("SD-R103", f"{table!r} must be a table of labelled tables", key, got, f"[{table}.LABEL]", fix)
        elif not LABEL.fullmatch(label) or key == "ema.student":
            expect = "a-z, then a-z, 0-9, _ and -" + ("; not student" if table == "ema" else "")
            self.problem("SD-R103", f"{label!r} cannot be a label", key, f"[{key}]", expect)
        else:
            return True
        return False

    def _unnamed(self, key: str, table: Mapping[str, Any], registry: Registry[Any]) -> None:
        expect, fix = f"one of {', '.join(registry.names())}", f"sddit-run show {registry.kind}"
        if "name" in table:
            got = f"name = {quoted(table['name'])}"
            self.problem("SD-R103", f"'{key}.name' is of the wrong kind", f"{key}.name", got, expect, fix)
        elif near := nearest("name", table):
            got, fix = f"{near} = {quoted(table[near])}", f"rename {near!r} if it was meant, or run  {fix}"
            self.problem("SD-R109", f"'{key}.name' is missing", f"{key}.{near}", got, expect, fix)
        elif others := self._other_labels(key):
            fix = f"{key}.name = ... for a new one (run  {fix}), or one of the labels {', '.join(others)}"
            if meant := nearest(key.partition(".")[2], others):
                got, expect = "a table without a name", f"one of the labels {', '.join(others)}"
                expect, fix = f"{expect}   (did you mean {meant!r}?)", fix.partition(", or")[0]
                self.problem("SD-R109", f"there is no [{key}]", key, got, expect, f"correct the label, or {fix}")
            else:
                self.problem("SD-R109", f"'{key}.name' is missing", key, "nothing", expect, fix)
        else:
            self.problem("SD-R109", f"'{key}.name' is missing", key, "nothing", expect, fix)

    def _other_labels(self, key: str) -> list[str]:
        """Return the labels next to that of `loss.LABEL`; empty for other tables."""
        table, _, label = key.partition(".")
        tables = _table(self.merged.tables.get(table)) if table in LABELLED else {}
        return sorted(other for other in tables if other != label)

    def _component(self, registry: Registry[Any], name: str, key: str) -> Component[Any] | None:
        if _is_code(name):
            what, expect = f"{key!r} names code; only `plugins` does that", "the name of a component"
            fix = 'plugins = ["./file.py"], and here the name under which the file registers it'
            self.problem("SD-R130", what, key, quoted(name), expect, fix)
            return None
        try:
            component = registry.usable(name, where=self.merged.place(key))
        except SdditError as failure:
            code = failure.problems[0].code
            if code == NOT_INSTALLED and self.merged.planned and registry.slot in DECLARED:
                self.unmet += failure.problems
                component = registry.get(name)
            else:
                if not (self._broken and code == "SD-R110"):  # a broken plugin may have offered it
                    self.add(failure.problems)
                return None
        self.used[component.origin] = self.host.rows[component.origin].identity
        return component


def absolute_paths(model: type[Params], table: Mapping[str, Any], merged: Merged, key: str) -> dict[str, str]:
    """Return the paths in a table `key`, made absolute: the fields with `json_schema_extra={"path": True}`.

    A field lists the words that are not paths: `{"path": True, "words": ["embedded"]}`.
    """
    found = {}
    for name, field in model.model_fields.items():
        extra: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        value = table.get(name := field.alias or name)
        if extra.get("path") and isinstance(value, str) and value not in ("", *extra.get("words", ())):
            found[name] = merged.absolute(f"{key}.{name}", value)
    return found


def with_corrected_keys(model: type[P], settings: Mapping[str, Any]) -> P | None:
    """Return the settings with each unknown key read as the nearest known one, or ignored; None if more is wrong."""
    known = keys(model)
    meant = {key: value for key, value in settings.items() if key in known}
    for key, value in settings.items():
        if key not in known and (near := nearest(key, known)):
            meant.setdefault(near, value)
    try:
        return validated(model, meant, table="")
    except SdditError:
        return None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_code(name: str) -> bool:
    """Return whether a name looks like a file or an import path rather than `component` or `plugin/component`."""
    return name.startswith((".", "/", "~")) or name.endswith(".py") or ":" in name.rpartition("/")[2]
