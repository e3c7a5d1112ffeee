"""From a recipe's file to a `Recipe`: translate, complain by line, note what has no effect, remember origins.

Order of precedence: defaults, the file, `--set key.sub=value`.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from node.config import keys
from node.config.recipe import Recipe
from node.config.sections import Averaging, DatasetSpec, MessageMapping, PotluckBlock
from node.config.yaml_tree import COMMAND_LINE, Key, YamlTree, parse_scalar, read_yaml
from node.core.errors import ConfigError
from node.core.text import brief
from node.core.versions import UPGRADE

T = TypeVar("T")

MAX_SHOWN = 5
"""Problems that one message lists; more would scroll the first one away."""

_MODELS: Mapping[tuple[str, ...], type[BaseModel]] = {
    (): Recipe,
    ("potluck",): PotluckBlock,
    ("potluck", "averaging"): Averaging,
    ("datasets",): DatasetSpec,
    ("datasets", "message_property_mappings"): MessageMapping,
}


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe, what to tell its reader, and where each value came from."""

    recipe: Recipe
    notes: tuple[str, ...]
    """One line for each group of keys that is accepted and has no effect."""
    origins: Mapping[str, str]
    """Dotted name of a leaf -> `recipe.yaml:14`, `--set` or `default`."""
    path: Path | None = None


@dataclass(slots=True)
class _Draft:
    """A recipe on its way: the tree that is being translated, and what was found on the way."""

    tree: YamlTree
    problems: list[tuple[str, str, str]] = field(default_factory=list)  # (where, message, hint)
    noted: dict[str, list[str]] = field(default_factory=dict)  # note -> keys

    def note(self, key: str, text: str) -> None:
        self.noted.setdefault(text, []).append(key)

    def problem(self, key: Key, message: str, hint: str = "") -> None:
        self.problems.append((self.tree.where(key), message, hint))

    def notes(self) -> tuple[str, ...]:
        return tuple(f"{', '.join(names)}: {text}" for text, names in self.noted.items())

    def fail_if_wrong(self) -> None:
        shown = self.problems[:MAX_SHOWN]
        if not shown:
            return
        lines = [f"{where}: {message}" for where, message, _ in shown]
        if len(self.problems) > MAX_SHOWN:
            lines.append(f"... and {len(self.problems) - MAX_SHOWN} more")
        hints = [(where, hint) for where, _, hint in shown if hint]
        # With several complaints each hint says which one it belongs to.
        said = [f"{where}: {hint}" for where, hint in hints] if len(shown) > 1 else [hint for _, hint in hints]
        raise ConfigError("\n".join(lines), hint="\n".join(said))


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe.

    Args:
        path: YAML file in Axolotl's key names.
        overrides: `dotted.key=value` in YAML's notation, applied over the file.

    Raises:
        ConfigError: Every complaint with file, line, and what to write instead.
    """
    path = Path(path)
    draft = _Draft(read_yaml(path))
    _apply_overrides(draft.tree, overrides)
    _drop_unset(draft.tree.values)
    _translate_root(draft)
    _translate_datasets(draft)
    for section, model in (("potluck",), PotluckBlock), (("potluck", "averaging"), Averaging):
        _check_names(draft, _mapping_at(draft.tree.values, section), section, model)
    draft.fail_if_wrong()
    recipe = _validate(draft)
    return LoadedRecipe(recipe, draft.notes(), _origins(recipe, draft.tree), path)


def parse_overrides(overrides: Sequence[str]) -> dict[str, object]:
    """Return `["a.b=1"]` as `{"a.b": 1}`, for `Recipe.with_local`.

    Raises:
        ConfigError: An item has no `=`.
    """
    parsed: dict[str, object] = {}
    for item in overrides:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"--set {item}: expected key=value", hint="for example --set potluck.averaging.compression=bf16"
            )
        parsed[name.strip()] = parse_scalar(text)
    return parsed


def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, with Potluck's own meaning of each key."""
    return Recipe.model_json_schema()


def show(loaded: LoadedRecipe) -> str:
    """Return the resolved recipe as YAML, each leaf with its origin in a comment."""
    lines: list[str] = []
    _show_into(lines, loaded.recipe.model_dump(mode="json"), "", loaded.origins, 0)
    return "\n".join(lines) + "\n"


def _apply_overrides(tree: YamlTree, overrides: Sequence[str]) -> None:
    for name, value in parse_overrides(overrides).items():
        *parents, leaf = name.split(".")
        branch = tree.values
        for parent in parents:
            below = branch.setdefault(parent, {})
            if below is None:
                below = branch[parent] = {}
            if not isinstance(below, dict):
                raise ConfigError(f"--set {name}: '{parent}' is no mapping")
            branch = below
        branch[leaf] = value
        key: Key = tuple(name.split("."))
        for known in [known for known in tree.lines if known[: len(key)] == key]:
            del tree.lines[known]
        tree.lines[key] = COMMAND_LINE


def _drop_unset(values: dict[str, object]) -> None:
    """Remove keys without a value, at every depth: in shared recipes an empty key means unset."""
    for name in [name for name, value in values.items() if value is None]:
        del values[name]
    for value in values.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                _drop_unset(item)


def _translate_root(draft: _Draft) -> None:
    values = draft.tree.values
    for name in list(values):
        value = values[name]
        if name in Recipe.model_fields:
            values[name] = _translate_value(draft, name, value)
        elif refusal := _lookup(keys.REFUSED, name):
            del values[name]
            _refuse(draft, (name,), name, value, refusal)
        elif text := _lookup(keys.NOTED, name):
            del values[name]
            draft.note(name, text)
        else:
            del values[name]
            draft.problem((name,), f"unknown key '{brief(name, 80)}'", _suggest(name, Recipe))
    target = values.get("lora_target_modules")
    if isinstance(target, str) or (isinstance(target, list) and target in (["all-linear"], ["all"])):
        del values["lora_target_modules"]
        if target in ("all-linear", "all", ["all-linear"], ["all"]):
            values["lora_target_linear"] = True
        else:
            draft.problem(
                ("lora_target_modules",),
                "lora_target_modules is a pattern, and patterns are not read",
                "list the layers: lora_target_modules: [q_proj, k_proj, v_proj, o_proj], or lora_target_linear: true",
            )


def _translate_value(draft: _Draft, name: str, value: object) -> object:
    for pattern, (ours, text) in keys.VALUES.get(name, {}).items():
        if isinstance(value, str) and value != ours and fnmatch.fnmatchcase(value, pattern):
            draft.note(f"{name}: {value}", text)
            return ours
    return value


def _translate_datasets(draft: _Draft) -> None:
    datasets = draft.tree.values.get("datasets")
    for index, spec in enumerate(datasets if isinstance(datasets, list) else ()):
        if not isinstance(spec, dict):
            continue
        for name in list(spec):
            key = ("datasets", index, name)
            if refusal := keys.DATASET_REFUSED.get(name):
                _refuse(draft, key, f"datasets[{index}].{name}", spec.pop(name), refusal)
            elif text := keys.DATASET_NOTED.get(name):
                del spec[name]
                draft.note(f"datasets[{index}].{name}", text)
        _check_names(draft, spec, ("datasets", index), DatasetSpec)
        if "type" in spec:
            _translate_type(draft, spec, index)


def _translate_type(draft: _Draft, spec: dict[str, object], index: int) -> None:
    kind = spec["type"]
    if isinstance(kind, str) and kind in keys.DATASET_TYPES:
        spec["type"] = keys.DATASET_TYPES[kind]
        return
    what = f"'{brief(kind, 60)}'" if isinstance(kind, str) else "a format of its own"
    draft.problem(
        ("datasets", index, "type"),
        f"datasets[{index}].type is {what}, which is not known here",
        f"known are {', '.join(keys.DATASET_TYPES)}; or delete the line and the rows are looked at",
    )
    del spec["type"]


def _refuse(draft: _Draft, key: Key, name: str, value: object, refusal: keys.Refusal) -> None:
    is_harmless = not value if isinstance(value, (list, dict)) else value in refusal.harmless or value == ""
    if not is_harmless:
        draft.problem(key, f"'{name}' is refused: {refusal.reason}", refusal.hint)


def _check_names(draft: _Draft, values: dict[str, object], prefix: Key, model: type[BaseModel]) -> None:
    for name in list(values):
        if name not in model.model_fields:
            dotted = ".".join(str(part) for part in (*prefix, name))
            draft.problem((*prefix, name), f"unknown key '{brief(dotted, 80)}'", _suggest(name, model))
            del values[name]


def _suggest(name: str, model: type[BaseModel]) -> str:
    if model is Recipe and name in keys.LLAMA_FACTORY:
        return f"`{name}` is LLaMA-Factory's; here it is `{keys.LLAMA_FACTORY[name]}`"
    if model is Recipe and name in keys.LLAMA_FACTORY_DROPPED:
        return f"`{name}` is LLaMA-Factory's; delete it, Potluck needs no such key"
    if model is Recipe and name in keys.ALIASES:
        return f"did you mean '{keys.ALIASES[name]}'?"
    if close := difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.6):
        return f"did you mean '{close[0]}'?"
    for prefix, other in _MODELS.items():
        if other is not model and name in other.model_fields:
            return f"did you mean '{'.'.join((*prefix, name))}'?"
    return f"`potluck config schema` lists the keys; if the recipe is for a newer Potluck, upgrade: `{UPGRADE}`"


def _lookup(table: Mapping[str, T], name: str) -> T | None:
    if name in table:
        return table[name]
    return next(
        (value for pattern, value in table.items() if "*" in pattern and fnmatch.fnmatchcase(name, pattern)), None
    )


def _mapping_at(values: Mapping[str, object], path: Iterable[str]) -> dict[str, object]:
    branch: object = values
    for name in path:
        branch = branch.get(name, {}) if isinstance(branch, dict) else {}
    return branch if isinstance(branch, dict) else {}


def _validate(draft: _Draft) -> Recipe:
    try:
        return Recipe.model_validate(draft.tree.values)
    except ValidationError as error:
        seen: set[str] = set()
        for problem in error.errors(include_url=False, include_context=False):
            key: Key = problem["loc"]
            # A union reports one problem a branch, with the branch's name at the end: the first will do.
            while key and key not in draft.tree.lines and problem["type"] != "missing":
                key = key[:-1]
            name = brief(".".join(str(part) for part in key), 80) if key else ""
            if name and name in seen:
                continue
            seen.add(name)
            draft.problem(key, _complaint(name, problem["msg"], _value_at(draft.tree.values, key)))
        draft.fail_if_wrong()
        raise


def _complaint(name: str, message: str, value: object) -> str:
    text = message.removeprefix("Value error, ")
    if not name or text != message:
        return text
    if text == "Field required":
        return f"'{name}' is missing"
    given = "" if isinstance(value, (dict, list)) else f" (it is {brief(repr(value), 60)})"
    return f"{name}: {text[0].lower()}{text[1:]}{given}"


def _value_at(values: object, key: Key) -> object:
    """Return the value under `key`, or None."""
    for part in key:
        if isinstance(values, dict) and isinstance(part, str):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values


def _origins(recipe: Recipe, tree: YamlTree) -> dict[str, str]:
    origins: dict[str, str] = {}

    def walk(value: object, key: Key) -> None:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                walk(item, (*key, name))
        elif isinstance(value, list) and value:
            for index, item in enumerate(value):
                walk(item, (*key, index))
        else:
            origins[".".join(str(part) for part in key)] = _origin(tree, key)

    walk(recipe.model_dump(mode="json"), ())
    return origins


def _origin(tree: YamlTree, key: Key) -> str:
    return "default" if _value_at(tree.values, key) is None else tree.where(key)


def _show_into(lines: list[str], tree: object, prefix: str, origins: Mapping[str, str], indent: int) -> None:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree if isinstance(tree, list) else [])
    for name, value in items:
        dotted = f"{prefix}{name}"
        head = " " * indent + ("-" if isinstance(name, int) else f"{name}:")
        if isinstance(value, (dict, list)) and value:
            lines.append(head)
            _show_into(lines, value, f"{dotted}.", origins, indent + 2)
        else:
            lines.append(f"{head + ' ' + _yaml_scalar(value):<48} # {origins.get(dotted, 'default')}")


def _yaml_scalar(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        plain = value and all(c.isalnum() or c in "_-./" for c in value) and isinstance(parse_scalar(value), str)
        return value if plain else "'" + value.replace("'", "''") + "'"
    return str(value) if not isinstance(value, list) else "[]"
