"""Loading a configuration strictly from YAML with dotted overrides, and writing it with comments."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from jepaworld.config.fields import Section
from jepaworld.config.schema import Config
from jepaworld.errors import ConfigError

__all__ = ["Config", "load_config", "to_commented_yaml"]

# Other names of settings: of the specification's text, and of earlier releases.
ALIASES = {
    "jepa_predictor_hidden_dim": "jepa_model.predictor_hidden_dim",
    "plannable": "dynamics_losses",
    "planning.objective": "planning.cost",
}


class _StrictLoader(yaml.SafeLoader):
    """YAML with `1e-3` read as a number, and a key given twice refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"line {line}: a key must be a plain name.")
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise ConfigError(f"{key}: given twice (line {line}). Keep one of them.")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads on, off, yes and no as truth values, so that `mixed_precision: off` would not be the text "off".
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_EXPONENT = "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
_StrictLoader.add_implicit_resolver(*_EXPONENT)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration strictly.

    Args:
        path: YAML file; `None` starts from the defaults.
        overrides: `key.path=value` each, the value in YAML; later ones win.

    Returns:
        The frozen, validated configuration.

    Raises:
        ConfigError: the file is missing or no YAML mapping, a key is unknown (the nearest known one is named), a
            value has the wrong type or range, or settings contradict each other.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({error}). `jepaworld init` writes a config.yaml to start from."
            ) from error
        raw = _parse_yaml(text, str(path))
        _resolve_alias(raw)
    chosen: dict[str, tuple[str, Any]] = {}
    for override in overrides:
        name, value = _parse_override(override)
        key = _current_name(name)
        earlier_name, earlier = chosen.setdefault(key, (name, value))
        if earlier_name != name and earlier != value:
            raise _two_names(earlier_name, earlier, name, value)
        chosen[key] = name, value
        _apply_override(raw, key, value)
    return _validate(raw)


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        raw = yaml.load(text, Loader=_StrictLoader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: expected `key: value` lines, found {type(raw).__name__}.")
    return raw


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"override {override!r}: expected key.path=value, for example batch_size=128.")
    try:
        return key, yaml.load(text, Loader=_StrictLoader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: the value {text!r} is not valid YAML: {error}") from error


def _apply_override(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = raw
    for depth, parent in enumerate(parents, start=1):
        child = node.setdefault(parent, {})
        if child is None:  # an empty section in the file
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {'.'.join(parents[:depth])} is the value {child!r}, not a section.")
        node = child
    node[leaf] = value


def _resolve_alias(raw: dict[str, Any]) -> None:
    """Move what a file says under another name of a setting to the setting itself."""
    for alias, key in ALIASES.items():
        *parents, leaf = alias.split(".")
        node: Any = raw
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or leaf not in node:
            continue
        value = node.pop(leaf)
        *parents, leaf = key.split(".")
        node = raw
        for parent in parents:
            node = node.setdefault(parent, {})
        if isinstance(node, dict) and node.setdefault(leaf, value) != value:
            raise _two_names(alias, value, key, node[leaf])


def config_from_dict(raw: dict[str, Any]) -> Config:
    """The configuration of plain nested dictionaries, as checkpoints of this and earlier releases hold it."""
    raw = copy.deepcopy(raw)
    _resolve_alias(raw)
    return Config.model_validate(raw)


def _current_name(name: str) -> str:
    for alias, key in ALIASES.items():
        if name == alias or name.startswith(f"{alias}."):
            return key + name.removeprefix(alias)
    return name


def _two_names(alias: str, value: Any, key: str, other: Any) -> ConfigError:
    return ConfigError(
        f"{alias} is {value!r} but {key} is {other!r}: they are two names of one setting. Keep one of them."
    )


def _validate(raw: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from None


def _explain(error: ValidationError) -> Iterator[str]:
    unions: set[str] = set()
    known = dict(_leaves(Config))
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        key = ".".join(path)
        if item["type"] == "extra_forbidden":
            yield f"{key}: unknown setting (value {item['input']!r}).{_nearest(key, known)}"
            continue
        # A union reports each of its members with a suffix such as `.int`; one sentence per setting is enough.
        while path and ".".join(path) not in known:
            path.pop()
        key = ".".join(path) or key
        if key in unions:
            continue
        unions.add(key)
        allowed = _allowed(known[key]) if key in known else ""
        reason = item["msg"][0].lower() + item["msg"][1:]
        yield f"{key}: {item['input']!r} is not possible ({reason}). Allowed: {allowed or 'see config.yaml'}."


def _nearest(key: str, known: Iterable[str]) -> str:
    known = list(known)
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    # In its own section first: of `jepa_model.ema` the section `jepa_model` would be the nearest name of all.
    section = key.rpartition(".")[0]
    siblings = [name for name in known if section and name.rpartition(".")[0] == section]
    close = same_leaf or difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:
        leaves = {name.rsplit(".", 1)[-1]: name for name in known}
        close = [leaves[match] for match in difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)]
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{hint} `jepaworld init` writes a file with every setting."


def _leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting and section below `section` by its full dotted path."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _leaves(field.annotation, f"{prefix}{name}.")


def _allowed(field: FieldInfo) -> str:
    """What a setting takes, in words: its type, choices and range."""
    words = _type_in_words(field.annotation)
    symbols = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{word} {_number(getattr(constraint, attribute))}"
        for constraint in field.metadata
        for attribute, word in symbols.items()
        if getattr(constraint, attribute, None) is not None
    ]
    patterns = [constraint.pattern for constraint in field.metadata if getattr(constraint, "pattern", None)]
    if patterns:
        words = "file name ending in .safetensors" if ".safetensors" in patterns[0] else f"text like {patterns[0]}"
    return ", ".join([words, *limits])


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _type_in_words(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *constraints = get_args(annotation)
        metadata = [entry for field in constraints for entry in getattr(field, "metadata", [])]
        limits = [f" of at least {entry.ge}" for entry in metadata if hasattr(entry, "ge")]
        return _type_in_words(base) + "".join(limits)
    if origin is Literal:
        return ", ".join(str(choice) for choice in get_args(annotation))
    if origin in (Union, UnionType):
        return " or ".join(_type_in_words(member) for member in get_args(annotation))
    if origin is list:
        return f"list of {_type_in_words(get_args(annotation)[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"mapping with {', '.join(annotation.model_fields)}"
    names = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(annotation, "section")


# --- writing -------------------------------------------------------------------------------------------------------


def to_commented_yaml(config: Config | None = None) -> str:
    """The configuration as YAML in which a comment before each setting says what it does, its unit and its range."""
    header = (
        "# Every setting of jepaworld. Each may be left out: the values that stand here in a new file are the\n"
        "# defaults. On the command line and in Python a setting is overridden as key.path=value.\n"
    )
    return header + "".join(_yaml_lines(config or Config(), indent=""))


def _yaml_lines(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        description = field.description or ""
        if isinstance(value, Section):
            yield f"\n{_comment(description, indent)}{indent}{name}:\n"
            yield from _yaml_lines(value, indent + "  ")
        else:
            yield f"{_comment(f'{description} Allowed: {_allowed(field)}.', indent)}{indent}{name}: {_scalar(value)}\n"


def _comment(text: str, indent: str) -> str:
    width = 110 - len(indent) - 2
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "".join(f"{indent}# {entry}\n" for entry in [*lines, line])


class _StrictDumper(yaml.SafeDumper):
    """Quotes every text that `_StrictLoader`, or another reader of YAML 1.1, would not read as text."""


_StrictDumper.add_implicit_resolver(*_EXPONENT)


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        value = [entry.model_dump(mode="json") if isinstance(entry, Section) else entry for entry in value]
    text = yaml.dump(value, Dumper=_StrictDumper, default_flow_style=True, width=10**6)
    return text.removesuffix("\n...\n").rstrip("\n")
