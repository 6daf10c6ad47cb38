"""Loading a configuration strictly from YAML with dotted overrides, and writing it with comments."""

from __future__ import annotations

import copy
import difflib
import io
import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from jepaworld.config import components
from jepaworld.config.catalogue import recipe_files
from jepaworld.config.fields import Section
from jepaworld.config.rules import contradictions, without_effect
from jepaworld.config.schema import Settings
from jepaworld.config.words import allowed, explain
from jepaworld.errors import ConfigError

# Other names of settings: of earlier releases, and of the specification's text.
RENAMED = {"plannable": "dynamics_losses", "planning.objective": "planning.cost"}
ALIASES = {"jepa_predictor_hidden_dim": "jepa_model.predictor_hidden_dim", **RENAMED}
_log = logging.getLogger(__name__)


class Config(Settings):
    """All settings of a run, checked against each other. `config.yaml` shows each with its comment.

    Example:
        ```
        config = load_config("two_room", ["num_epochs=20"])
        smaller = config.with_overrides(["batch_size=64"])
        ```
    """

    def model_post_init(self, _context: Any) -> None:
        """Refuse settings that contradict each other."""
        for problem in contradictions(self):
            raise ConfigError(problem)

    def notices(self) -> list[str]:
        """Settings changed from their defaults that have no effect beside the others, a sentence each."""
        return list(without_effect(self, type(self)()))

    def with_overrides(self, overrides: Sequence[str]) -> Config:
        """The same with other settings, `key.path=value` each.

        Raises:
            ConfigError: as `load_config`.
        """
        return _overridden(self.to_dict(), overrides)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), *, trust: bool = False) -> Config:
    """Load a configuration strictly.

    Args:
        path: YAML file, or the name of a recipe such as "two_room"; `None` starts from the defaults.
        overrides: `key.path=value` each, the value in YAML; later ones win.
        trust: Whether the file is the user's own, so that classes from outside jepaworld that it names may be
            imported, and old names of settings are pointed out. What overrides name always may.

    Returns:
        The frozen, validated configuration.

    Raises:
        ConfigError: the file is missing or no YAML mapping, a key is unknown (the nearest known one is named), a
            value has the wrong type or range, or settings contradict each other.
    """
    if path is None:
        return _overridden({}, overrides)
    path = _find(Path(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    raw = parse_yaml(text, str(path))
    raw = {} if raw is None else raw  # nothing but comments
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(raw).__name__}.")
    found = _resolve_aliases(raw)
    if trust:
        components.trust(raw)
        for alias in RENAMED.keys() & found:
            _say_renamed(alias)
    return _overridden(raw, overrides)


def config_from_dict(raw: Mapping[str, Any]) -> Config:
    """The configuration of plain nested dictionaries, as checkpoints of this and earlier releases hold it.

    Raises:
        ConfigError: as `load_config`.
    """
    raw = copy.deepcopy(dict(raw))
    _resolve_aliases(raw)
    return _overridden(raw, ())


def _find(path: Path) -> Path:
    """The file that a user means: a path, or a recipe by its name."""
    recipes = recipe_files()
    if str(path) in recipes and not path.is_file():  # a folder of that name is not meant
        return recipes[str(path)]
    if path.exists():
        return path
    hint = "".join(f" Did you mean {name}?" for name in difflib.get_close_matches(path.stem, recipes, n=1))
    raise ConfigError(
        f"{path}: cannot be read, there is no such file or recipe.{hint} `jepaworld recipes` lists the recipes, "
        "`jepaworld init` writes a config.yaml to start from."
    )


def parse_yaml(text: str, source: str) -> Any:
    """What YAML 1.2 says.

    Raises:
        ConfigError: it is no YAML, or a key is given twice; with `source` as the place.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        raise ConfigError(f"{source}: a key is given twice: {error.problem}{error.problem_mark}.") from error
    except YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


def dump_yaml(value: Any, *, flow: bool = False) -> str:
    """YAML 1.2 of plain values, in one line if `flow`; every text is read back as text."""
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.width, yaml.sort_base_mapping_type_on_output = flow, 10**6, False  # pyright: ignore
    yaml.dump(value, text)
    return text.getvalue().removesuffix("...\n")


# --- overrides and other names -------------------------------------------------------------------------------------


def _overridden(raw: dict[str, Any], overrides: Sequence[str]) -> Config:
    given: dict[str, tuple[str, Any]] = {}  # by setting: the name that was used, and the value
    own: dict[str, Any] = {}
    for override in overrides:
        name, separator, text = override.partition("=")
        name = name.strip()
        if not separator or not name:
            raise ConfigError(f"override {override!r}: expected key.path=value, for example batch_size=128.")
        value = parse_yaml(text, f"{name}: the value {text!r}")
        alias = next((alias for alias in ALIASES if f"{name}.".startswith(f"{alias}.")), None)
        key = name if alias is None else ALIASES[alias] + name.removeprefix(alias)
        if alias in RENAMED:
            _say_renamed(alias)
        earlier_name, earlier = given.setdefault(key, (name, value))
        if earlier_name != name and earlier != value:
            raise _two_names(earlier_name, earlier, name, value)
        given[key] = name, value
        _set(raw, key, value)
        _set(own, key, value)
    components.trust(own)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, Config))) from None


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for depth, parent in enumerate(parents, start=1):
        if raw.get(parent) is None:  # missing, or an empty section in the file
            raw[parent] = {}
        raw = raw[parent]
        if not isinstance(raw, dict):
            raise ConfigError(f"{key}: {'.'.join(parents[:depth])} is the value {raw!r}, not a section.")
    raw[leaf] = value


def _resolve_aliases(raw: dict[str, Any]) -> list[str]:
    """Move what a file says under another name of a setting to the setting itself; the names that it uses."""
    found = []
    for alias, key in ALIASES.items():
        parent, _, leaf = alias.rpartition(".")
        node = raw.get(parent) if parent else raw
        if not isinstance(node, dict) or leaf not in node:
            continue
        found.append(alias)
        value, other = node.pop(leaf), components.value_at(raw, key)
        if other not in (None, value):
            raise _two_names(alias, value, key, other)
        _set(raw, key, value)
    return found


@cache
def _say_renamed(alias: str) -> None:  # once, however often the file is read
    _log.warning("%s is called %s now; please rename it.", alias, ALIASES[alias])


def _two_names(alias: str, value: Any, key: str, other: Any) -> ConfigError:
    return ConfigError(f"{alias} is {value!r} but {key} is {other!r}: two names of one setting. Keep one of them.")


# --- writing -------------------------------------------------------------------------------------------------------


UNBROKEN: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}  # names and paths


def to_commented_yaml(config: Config | None = None) -> str:
    """The configuration as YAML in which a comment before each setting says what it does, its unit and its range."""
    header = (
        "# Every setting of jepaworld. Each may be left out: the values that stand here in a new file are the\n"
        "# defaults. On the command line and in Python a setting is overridden as key.path=value.\n"
    )
    return header + "".join(_yaml_lines(config or Config(), indent=""))


def _yaml_lines(section: Section, indent: str) -> Iterator[str]:
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value, text = getattr(section, name), field.description or ""
        nested = isinstance(value, Section)
        text = text if nested else f"{text} Allowed: {allowed(field)}."
        mark = f"{indent}# "
        comment = textwrap.fill(text, 110, initial_indent=mark, subsequent_indent=mark, **UNBROKEN)
        if nested:
            yield f"\n{comment}\n{indent}{name}:\n"
            yield from _yaml_lines(value, indent + "  ")
        else:
            yield f"{comment}\n{indent}{name}: {dump_yaml(plain[name], flow=True).strip()}\n"
