"""The registry of components: classes that a setting chooses by a name, or by `module:Class` from outside.

A component is registered where it is written, with its settings beside it:

    class CNNSettings(Section):
        num_layers: int = setting(3, "Number of convolutions.", ge=1)

    @component("encoder", "cnn", label="CNN")
    class CNNEncoder(nn.Module):
        Settings = CNNSettings

Its part of the configuration, the comments in `config.yaml`, checks, notices and the report's label follow. Settings
may have two methods, `contradictions(config, prefix)` and `notices(config, prefix)`, each yielding sentences.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from jepaworld.config.fields import Section, section, setting
from jepaworld.config.words import explain
from jepaworld.errors import ConfigError
from jepaworld.utils.outside import import_attribute

PACKAGES = ("jepaworld.models", "jepaworld.losses", "jepaworld.planning")
TRUST = "JEPAWORLD_TRUST"
OUTSIDE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
T = TypeVar("T", bound=type)


class Kind(NamedTuple):
    """Where the configuration chooses a component and has its settings."""

    switch: str  # the setting that chooses
    section: str  # the section with the settings of all components of the kind
    needs: tuple[str, ...]  # what a component must have, once it is made
    prefix: str = ""  # before the names in the section
    flat: bool = False  # whether the settings of all share the section, instead of a part for each
    auto: tuple[str, str] | None = None  # what "auto" chooses for `Box` and for `Discrete` actions

    @property
    def custom(self) -> str:
        """The setting with the settings of a class from outside."""
        return self.section if self.section == "model_params" else f"{self.section}.{self.prefix}custom"


WORLD_MODEL = ("latent_shape", "context_length", "encode", "encode_target", "predict", "rollout")
"""The parts of `jepaworld.models.WorldModel`."""

KINDS = {
    "model": Kind("model_type", "model_params", (*WORLD_MODEL, "training_loss", "state_dict")),
    "encoder": Kind("encoder_type", "encoder_params", ("forward",)),
    "action_encoder": Kind("action_encoder_type", "action_encoder_params", ("forward",), auto=("linear", "table")),
    "predictor": Kind(
        "jepa_model.predictor_type", "jepa_model", ("forward", "advance", "context_length"), "predictor_", flat=True
    ),
    "auxiliary_loss": Kind("auxiliary_loss.type", "auxiliary_loss.params", ("calculate_reg_terms",)),
    "planner": Kind("planning.planner", "planning", ("plan", "shift"), flat=True, auto=("cem", "categorical_cem")),
}
_registered: dict[str, dict[str, type]] = {kind: {} for kind in KINDS}
_labels: dict[tuple[str, str], str] = {}
_trusted: set[str] = set()


def component(kind: str, name: str, *, label: str | None = None) -> Callable[[T], T]:
    """Register a class of this package under the name that the setting of its kind chooses it by.

    Args:
        kind: A key of `KINDS`.
        name: The setting's value.
        label: How reports call it; None takes the name.
    """

    def register(cls: T) -> T:
        _registered[kind][name], _labels[kind, name] = cls, label or name
        return cls

    return register


@cache
def _find_components() -> None:
    for package in map(importlib.import_module, PACKAGES):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for kind, classes in _registered.items():
        # By module, whichever of them somebody imported first.
        _registered[kind] = dict(sorted(classes.items(), key=lambda entry: entry[1].__module__))


def registered(kind: str) -> Mapping[str, type]:
    """The built-in classes of a kind by their names."""
    _find_components()
    return _registered[kind]


def label(kind: str, name: str) -> str:
    """How reports call a component: its label, or the name of a class from outside."""
    registered(kind)
    return _labels.get((kind, name), name.rpartition(":")[2])


def values(kind: str) -> list[str]:
    """What the setting of a kind may be, beside classes from outside."""
    return [*(["auto"] if KINDS[kind].auto else []), *registered(kind)]


# --- in the configuration ------------------------------------------------------------------------------------------


class Choice:
    """For `Annotated[str, Choice(kind)]`, the type of the setting that chooses a component of that kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def choices(self) -> str:
        """What is allowed, in words."""
        return f"{', '.join(values(self.kind))}, module:Class"

    def _check(self, value: str) -> str:
        if value not in values(self.kind) and not OUTSIDE.fullmatch(value):
            raise ValueError(f"no {self.kind.replace('_', ' ')} of that name")
        return value


class ComponentSettings(Section):
    """A section with the settings of all registered components of a kind, before its field `custom`.

    What they are is asked on first use, not on import: components import the configuration themselves.
    """

    kind: ClassVar[str]
    complete: ClassVar[bool] = False

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        cls.all_fields()
        return handler(source)

    @classmethod
    def all_fields(cls) -> dict[str, FieldInfo]:
        """Its own fields and those of the components."""
        if not cls.complete:
            cls.complete = True
            own = dict(cls.model_fields)
            cls.model_fields.clear()
            for name, field in own.items():
                cls.model_fields.update(_fields(cls.kind) if name.endswith("custom") else ())
                cls.model_fields[name] = field
        return cls.model_fields

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


CUSTOM = setting({}, "Settings of a class from outside.")


def _fields(kind: str) -> Iterator[tuple[str, FieldInfo]]:
    where = KINDS[kind]
    for name, cls in registered(kind).items():
        settings: type[Section] | None = getattr(cls, "Settings", None)
        if settings is not None and where.flat:
            yield from ((where.prefix + key, copy(field)) for key, field in settings.model_fields.items())
        elif settings is not None:
            part = section(settings, f"Used when {where.switch} is {name}.")
            yield name, FieldInfo.from_annotated_attribute(settings, part)


class Chosen(NamedTuple):
    """A component that a configuration chooses."""

    kind: str
    name: str  # as the configuration has it, or `module:Class`
    cls: type
    settings: Section | dict[str, Any]  # an object of the class's `Settings`; where it has none, by name
    prefix: str  # before the names of its settings in the configuration

    def make(self, **facts: Any) -> Any:
        """The component. Its constructor is given those of the facts that it has parameters for, and all settings.

        The settings are given as one object if there is a parameter `settings`, else each by its name.
        """
        signature = inspect.signature(self.cls)
        as_object = isinstance(self.settings, Section) and "settings" in inspect.getfullargspec(self.cls).args
        settings = {"settings": self.settings} if as_object else dict(self.settings)
        given = {name: fact for name, fact in facts.items() if name in signature.parameters} | settings
        try:
            signature.bind(**given)
        except TypeError as error:
            raise ConfigError(f"{self.prefix.rstrip('.')}: {self.name} cannot be made with these: {error}.") from error
        made = self.cls(**given)
        if missing := [name for name in KINDS[self.kind].needs if not hasattr(made, name)]:
            raise ConfigError(f"{self.name} lacks {', '.join(missing)}, see docs/components.md.")
        return made


def choose(kind: str, name: str, section: Any, discrete: bool | None = None) -> list[Chosen]:
    """The component of that name with its settings, or what "auto" may choose.

    Args:
        kind: A key of `KINDS`.
        name: The value of the setting that chooses.
        section: The section with the settings.
        discrete: Whether actions are `Discrete`, which "auto" goes by; None where that is not known.

    Raises:
        ConfigError: a class from outside is not trusted, cannot be imported, or does not take its settings.
    """
    where = KINDS[kind]
    if name == "auto" and where.auto:
        names = where.auto if discrete is None else [where.auto[discrete]]
        return [choose(kind, one, section)[0] for one in names]
    if name in registered(kind):
        cls, prefix = registered(kind)[name], f"{where.section}.{where.prefix if where.flat else f'{name}.'}"
        given = {} if where.flat else getattr(section, name, {})
    else:
        cls, prefix = _as_class(imported(where.switch, name), where.switch, name), f"{where.custom}."
        given = section if isinstance(section, dict) else getattr(section, where.custom.rpartition(".")[2])
    kind_of_settings: type[Section] | None = getattr(cls, "Settings", None)
    if kind_of_settings is None or (where.flat and name in registered(kind)):
        given = {one: getattr(section, where.prefix + one) for one in taken(cls, section)} | dict(given)
    if kind_of_settings is None:
        return [Chosen(kind, name, cls, given, prefix)]
    try:
        return [Chosen(kind, name, cls, kind_of_settings.model_validate(given), prefix)]
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, kind_of_settings, prefix))) from None


def _as_class(found: Any, key: str, name: str) -> type:
    with suppress(ValueError):  # a class that is not written in Python has no signature
        if inspect.isclass(found) and inspect.signature(found):
            return found
    raise ConfigError(f"{key} is {name}: must be a class whose __init__ has named parameters.")


def chosen(kind: str, config: Any, discrete: bool | None = None) -> list[Chosen]:
    """As `choose`, with name and settings as a configuration has them."""
    where = KINDS[kind]
    return choose(kind, value_at(config, where.switch), value_at(config, where.section), discrete)


def model_parts(config: Any) -> tuple[str, ...]:
    """The kinds of components that the model is put together from; one from outside has parts of its own."""
    return getattr(chosen("model", config)[0].cls, "built_from", ())


def make(kind: str, config: Any, discrete: bool = False, **facts: Any) -> Any:
    """The component of a kind that a configuration chooses, see `Chosen.make`."""
    return chosen(kind, config, discrete)[0].make(**facts)


def taken(cls: type, section: Any) -> list[str]:
    """The names of the settings that a class takes: of its `Settings`, or else of its parameters in the section."""
    if settings := getattr(cls, "Settings", None):
        return list(settings.model_fields)
    shared = type(section).model_fields if isinstance(section, Section) else {}
    return [name for name in inspect.signature(cls).parameters if name in shared]


def value_at(config: Any, key: str) -> Any:
    """The value of a setting by its dotted path, in a configuration or in nested dictionaries; None if missing."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else getattr(config, part, None)
    return config


# --- from outside --------------------------------------------------------------------------------------------------


def trust(settings: Mapping[str, Any]) -> None:
    """Let the classes that a user's own settings name be imported, from here on in this process.

    Args:
        settings: Nested dictionaries; those of a file of somebody else's do not belong here.
    """
    named = [value_at(settings, where.switch) for where in KINDS.values()]
    _trusted.update(name for name in named if isinstance(name, str))


def imported(key: str, name: str) -> Any:
    """What `module:Name` names, if the user gave leave to import it; `key` is the setting, for messages.

    Raises:
        ConfigError: it is not trusted, or cannot be imported.
    """
    if name not in _trusted and os.environ.get(TRUST) != "1":
        raise ConfigError(f"{key} is {name}, code that importing would run: set {TRUST}=1 if you trust it.")
    return import_attribute(name, f"{key} is {name}")
