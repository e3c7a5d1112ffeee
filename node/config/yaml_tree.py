"""Read YAML as plain values with the line of each, and nothing more.

The text may come from a stranger, so it is composed into nodes and never constructed: no tags, no merge
keys, a bound on size, depth and number of values (which also stops alias bombs).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from node.core.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 12
MAX_VALUES = 20_000
_MAX_BRACKETS = 100
_MAX_COMMAS = 200
"""Ten times as many as recipes have, comments included; a list's value takes up to a tenth of a millisecond."""
_BRACKET = re.compile(r"[\[\]{}]")

COMMAND_LINE = 0
"""The line of a key that `--set` gave."""

_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")
)

Key = tuple[str | int, ...]

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE|yes|Yes|YES|on|On|ON")
_FALSE = re.compile(r"false|False|FALSE|no|No|NO|off|Off|OFF")
_INT = re.compile(r"[-+]?[0-9][0-9_]{0,18}")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")


@dataclass(slots=True)
class YamlTree:
    """A document: its values, and the line (from 1) on which each key stands."""

    source: str
    values: dict[str, object]
    lines: dict[Key, int] = field(default_factory=dict)

    def where(self, key: Key) -> str:
        """Return `file:line` of the key, or of its nearest parent that the file has, or `--set`."""
        while key and key not in self.lines:
            key = key[:-1]
        if key and self.lines[key] == COMMAND_LINE:
            return "--set"
        return f"{self.source}:{self.lines[key]}" if key else self.source


def read_yaml(path: Path) -> YamlTree:
    """Read a YAML file whose root is a mapping.

    Raises:
        ConfigError: It cannot be read, is too large, too deep, or no such mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "`potluck init` writes a recipe to start from" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=hint) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes, so it is no recipe")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text (byte {error.start})") from error
    return parse_yaml(text, path.name)


def parse_yaml(text: str, source: str) -> YamlTree:
    """Like `read_yaml`, from text; `source` is the name in messages."""
    tree = YamlTree(source, {})
    _refuse_brackets(text, source)
    if text.count(",") > _MAX_COMMAS:
        raise ConfigError(f"{source}: more than {_MAX_COMMAS} commas, so it is no recipe")
    root = _compose(text, source)
    if root is None:
        return tree
    if not isinstance(root, MappingNode):
        raise ConfigError(f"{source}: expected `key: value` lines at the top")
    values = _Converter(tree).convert(root, (), 0)
    assert isinstance(values, dict)
    tree.values = values
    return tree


def parse_scalar(text: str) -> object:
    """Return the value that `text` has in YAML (for `--set key=value`): a scalar, list or mapping."""
    return parse_yaml(f"value: {text}", "--set").values["value"]


def _refuse_brackets(text: str, source: str) -> None:
    """Refuse a hundred open brackets before they are scanned, which takes their square; in texts they count as well."""
    open_brackets = 0
    for found in _BRACKET.finditer(text):
        open_brackets = max(0, open_brackets + (1 if found[0] in "[{" else -1))
        if open_brackets > _MAX_BRACKETS:
            raise ConfigError(f"{source}: nested deeper than {MAX_DEPTH} levels")


def _compose(text: str, source: str) -> Node | None:
    try:
        with warnings.catch_warnings(category=ReusedAnchorWarning, action="ignore"):  # it would be printed as it is
            reader = YAML(typ="safe", pure=True)
            reader.max_depth = MAX_DEPTH + 2
            node: Node | None = reader.compose(text)
    except MaxDepthExceededError as error:
        raise ConfigError(f"{source}: nested deeper than {MAX_DEPTH} levels") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(
            f"{where}: not valid YAML: {error.problem or error.context}",
            hint="check the indentation and the colons around that line",
        ) from error
    except (YAMLError, ValueError) as error:  # ruamel lets ValueErrors of odd escapes and characters through
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())[:200]}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply") from error
    return node


class _Converter:
    """Turns composed nodes into plain values, counting them."""

    def __init__(self, tree: YamlTree) -> None:
        self._tree = tree
        self._count = 0

    def convert(self, node: Node, key: Key, depth: int) -> object:
        self._count += 1
        line = node.start_mark.line + 1
        where = f"{self._tree.source}:{line}"
        if depth > MAX_DEPTH or self._count > MAX_VALUES:
            raise ConfigError(f"{where}: nested deeper than {MAX_DEPTH} levels or more than {MAX_VALUES} values")
        if str(node.tag) not in _TAGS:
            raise ConfigError(f"{where}: tags like `{node.tag}` are not read")
        self._tree.lines.setdefault(key, line)
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if isinstance(node, SequenceNode):
            return [self.convert(item, (*key, index), depth + 1) for index, item in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        values: dict[str, object] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            name = name_node.value
            if not isinstance(name_node, ScalarNode) or not isinstance(name, str) or name == "<<":
                raise ConfigError(
                    f"{self._tree.source}:{line}: keys must be plain words, and merge keys (`<<`) are not read"
                )
            if name in values:
                raise ConfigError(
                    f"{self._tree.source}:{line}: '{name}' is there twice", hint="keep one of the two lines"
                )
            self._tree.lines[(*key, name)] = line
            values[name] = self.convert(value_node, (*key, name), depth + 1)
        return values

    @staticmethod
    def _scalar(node: ScalarNode) -> object:
        text: str = node.value
        if node.style in ("'", '"', "|", ">"):
            return text
        # Resolved here and not by the tag, so that YAML 1.1 (`yes`, which other trainers accept) and
        # YAML 1.2 (`1e-5` is a number) both mean what the writer meant.
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
            return bool(_TRUE.fullmatch(text))
        if _INT.fullmatch(text):
            return int(text.replace("_", ""))
        return float(text.replace("_", "")) if _FLOAT.fullmatch(text) else text
