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
from jepaworld.config.fields import Section
from jepaworld.config.rules import contradictions, without_effect
from jepaworld.config.schema import Settings
from jepaworld.config.words import allowed, explain
from jepaworld.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"
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
    raw: dict[str, Any] = {}
    if path is not None:
        path = _find(Path(path))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error}).") from error
        raw = parse_yaml(text, str(path))
        raw = {} if raw is None else raw
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected `key: value` lines, found {type(raw).__name__}.")
        for alias in _resolve_aliases(raw):
            if trust and alias in RENAMED:
                _say_renamed(alias)
        if trust:
            components.trust(raw)
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
    recipe = RECIPES / f"{path}.yaml"
    if path.is_file() or not recipe.is_file():
        if not path.exists():
            names = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
            hint = "".join(f" Did you mean {name}?" for name in difflib.get_close_matches(path.stem, names, n=1))
            raise ConfigError(
                f"{path}: cannot be read, there is no such file or recipe.{hint} Recipes: {', '.join(names)}; "
                "`jepaworld init` writes a config.yaml to start from."
            )
        return path
    return recipe


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
    chosen: dict[str, tuple[str, Any]] = {}
    own: dict[str, Any] = {}
    for override in overrides:
        name, value = _parse_override(override)
        alias = next((alias for alias in ALIASES if f"{name}.".startswith(f"{alias}.")), None)
        key = name if alias is None else ALIASES[alias] + name.removeprefix(alias)
        if alias in RENAMED:
            _say_renamed(alias)
        earlier_name, earlier = chosen.setdefault(key, (name, value))
        if earlier_name != name and earlier != value:
            raise _two_names(earlier_name, earlier, name, value)
        chosen[key] = name, value
        for tree in (raw, own):
            _set(tree, key, value)
    components.trust(own)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, Config))) from None


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"override {override!r}: expected key.path=value, for example batch_size=128.")
    return key, parse_yaml(text, f"{key}: the value {text!r}")


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
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


def _resolve_aliases(raw: dict[str, Any]) -> list[str]:
    """Move what a file says under another name of a setting to the setting itself; the names that it uses."""
    found = []
    for alias, key in ALIASES.items():
        parents, _, leaf = alias.rpartition(".")
        node = raw.get(parents) if parents else raw
        if not isinstance(node, dict) or leaf not in node:
            continue
        found.append(alias)
        value = node.pop(leaf)
        parents, _, leaf = key.rpartition(".")
        node = raw.setdefault(parents, {}) if parents else raw
        if isinstance(node, dict) and node.setdefault(leaf, value) != value:
            raise _two_names(alias, value, key, node[leaf])
    return found


@cache
def _say_renamed(alias: str) -> None:  # once, however often the file is read
    _log.warning("%s is called %s now; please rename it.", alias, ALIASES[alias])


def _two_names(alias: str, value: Any, key: str, other: Any) -> ConfigError:
    return ConfigError(f"{alias} is {value!r} but {key} is {other!r}: two names of one setting. Keep one of them.")


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
        value, text = getattr(section, name), field.description or ""
        if not isinstance(value, Section):
            text += f" Allowed: {allowed(field)}."
        comment = textwrap.fill(text, 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", **_WRAPPING)
        if isinstance(value, Section):
            yield f"\n{comment}\n{indent}{name}:\n"
            yield from _yaml_lines(value, indent + "  ")
        else:
            plain = section.model_dump(mode="json", include={name})[name]
            yield f"{comment}\n{indent}{name}: {dump_yaml(plain, flow=True).strip()}\n"


_WRAPPING: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
