"""What all sections of the settings are made of."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

PositiveInt = Annotated[int, Field(ge=1)]
NonEmpty = Annotated[str, Field(min_length=1)]


def _only_json(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what a checkpoint's JSON header could not give back."""
    if value != json.loads(json.dumps(value, allow_nan=False, default=str)):
        raise ValueError("keys must be text and values numbers, text, truth values, null, lists or mappings")
    return value


JsonDict = Annotated[dict[str, Any], AfterValidator(_only_json)]


def setting(default: Any, description: str, *, unit: str = "", **constraints: Any) -> Any:
    """A field whose description, unit and range become its comment in `config.yaml`."""
    text = description if not unit else f"{description} Unit: {unit}."
    if isinstance(default, (dict, list)):
        return Field(default_factory=lambda: default.copy(), description=text, **constraints)
    return Field(default=default, description=text, **constraints)


def section(kind: type[Section], description: str) -> Any:
    """A field that is a section with its defaults."""
    return Field(default_factory=kind, description=description)


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def all_fields(cls) -> dict[str, FieldInfo]:
        """Every field by its name."""
        return cls.model_fields
