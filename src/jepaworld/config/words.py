"""Settings in words: what each takes, and what is wrong with a value."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from jepaworld.config.fields import Section

LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}


def leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting and section below `section` by its full dotted path."""
    for name, field in section.all_fields().items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{prefix}{name}.")


def explain(error: ValidationError, root: type[Section], prefix: str = "") -> Iterator[str]:
    """A sentence for each setting that is not possible; `prefix` stands before the names in `root`."""
    said: set[str] = set()
    known = dict(leaves(root, prefix))
    for item in error.errors():
        path = [*prefix.split(".")[:-1], *map(str, item["loc"])]
        key = ".".join(path)
        if item["type"] == "extra_forbidden":
            hint = f" Did you mean {close}?" if (close := nearest(key, list(known))) else ""
            yield f"{key}: unknown setting.{hint} `jepaworld init` writes a file with every setting."
            continue
        # A union reports each of its members with a suffix such as `.int`; one sentence per setting is enough.
        key = next((found for end in range(len(path), 0, -1) if (found := ".".join(path[:end])) in known), key)
        if key not in said:
            said.add(key)
            reason = item["msg"].removeprefix("Value error, ")
            words = allowed(known[key]) if key in known else "see config.yaml"
            yield f"{key}: {item['input']!r} is not possible ({reason[0].lower()}{reason[1:]}). Allowed: {words}."


def nearest(key: str, known: list[str]) -> str:
    """The known setting that a mistyped one most likely means; "" for none."""
    section, _, leaf = key.rpartition(".")
    last = {name.rpartition(".")[2]: name for name in known}
    if leaf in last:
        return last[leaf]
    # In its own section first: of `jepa_model.ema` the section `jepa_model` would be the nearest name of all.
    siblings = [name for name in known if section and name.rpartition(".")[0] == section]
    for candidates in (siblings, known):
        if close := difflib.get_close_matches(key, candidates, n=1):
            return close[0]
    return "".join(last[match] for match in difflib.get_close_matches(leaf, list(last), n=1))


def allowed(field: FieldInfo) -> str:
    """What a setting takes, in words: its type, choices and range."""
    for constraint in field.metadata:
        if hasattr(constraint, "choices"):
            return constraint.choices()
        if pattern := getattr(constraint, "pattern", None):
            return "file name ending in .safetensors" if ".safetensors" in pattern else f"text like {pattern}"
    return ", ".join([_type_in_words(field.annotation), *_limits(field.metadata)])


def _limits(constraints: list[Any]) -> list[str]:
    return [
        f"{word} {limit if isinstance(limit, int) else f'{limit:g}'}"
        for constraint in constraints
        for attribute, word in LIMITS.items()
        if (limit := getattr(constraint, attribute, None)) is not None
    ]


def _type_in_words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = _limits([entry for field in parts[1:] for entry in getattr(field, "metadata", [])])
        return " of ".join([_type_in_words(parts[0]), *([" and ".join(limits)] if limits else [])])
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " or ".join(map(_type_in_words, parts))
    if origin is list:
        return f"list of {_type_in_words(parts[0])}"
    if origin is dict:
        return "mapping"
    if issubclass(annotation, Section):
        return f"mapping with {', '.join(annotation.all_fields())}"
    return NAMES[annotation]
