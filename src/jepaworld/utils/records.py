"""Records that are written as JSON and read back by the same model."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that may be NaN, which JSON does not have: null there."""


class Record(BaseModel):
    """A model whose JSON holds no NaN, and which skips keys of other versions."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True, ser_json_inf_nan="null")


def beside() -> Any:
    """A field that is at hand after measuring and is not written: arrays, pictures."""
    return Field(default=None, exclude=True, repr=False)
