"""The packaged recipes: what each is for, what it needs, and how well it was measured to plan.

The configurations are `recipes/*.yaml`; what is said about them is `recipes.json` beside that folder.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydantic import Field, TypeAdapter

from jepaworld.config.fields import NonEmpty, PositiveInt, Section
from jepaworld.utils.outside import EXTRAS
from jepaworld.utils.text import columns, share, wrapped

RECIPES = Path(__file__).parent / "recipes"


class Measured(Section):
    """A measured figure of a recipe, never without its source.

    Attributes:
        rate: Share of goals that plans reached at any time, 0 to 1.
        low: Lower end of its 95 % interval.
        high: Upper end.
        goals: Which goals these were.
        minutes: From nothing to the trained model; None where nobody took the time.
        machine: Where.
        source: File of the repository that the figure stands in.
    """

    rate: float = Field(ge=0.0, le=1.0)
    low: float = Field(ge=0.0, le=1.0)
    high: float = Field(ge=0.0, le=1.0)
    goals: NonEmpty
    minutes: float | None = Field(default=None, gt=0.0)
    machine: NonEmpty
    source: NonEmpty


class Recipe(Section):
    """A packaged configuration, as `jepaworld recipes` lists it.

    Attributes:
        purpose: What it is for, in a line.
        file: Its file without ".yaml", where that is another name.
        extra: What must be installed beside the package, several with commas between them.
        parameters: Trained parameters of the model, without heads of losses.
        measured: How well it plans; None if nobody measured.
    """

    purpose: NonEmpty
    file: str | None = None
    extra: str | None = None
    parameters: PositiveInt
    measured: Measured | None = None

    @property
    def extras(self) -> list[str]:
        """Each that `extra` names."""
        return self.extra.split(",") if self.extra else []


@cache
def catalogue() -> dict[str, Recipe]:
    """Every packaged recipe by its name.

    Example:
        >>> catalogue()["push_t"].extra
        'pusht'
    """
    content = (Path(__file__).parent / "recipes.json").read_bytes()
    return TypeAdapter(dict[str, Recipe]).validate_json(content)


def recipe_files() -> dict[str, Path]:
    """The configuration of each name: of the catalogue, and of the file where that is another one."""
    files = {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}
    return {name: RECIPES / f"{recipe.file or name}.yaml" for name, recipe in catalogue().items()} | files


def overview(environments: dict[str, str]) -> Iterator[str]:
    """Lines for the terminal: a table of the recipes, then what each is for.

    Args:
        environments: The environment of each recipe.
    """
    rows = [["recipe", "environment", "extra", "parameters", "goals reached (95 %)", "minutes"]]
    for name, recipe in catalogue().items():
        found = recipe.measured
        figures = ["not measured", "-"]
        if found is not None:
            figures = [share(found), "-" if found.minutes is None else f"{found.minutes:.1f}"]
        rows.append([name, environments[name], recipe.extra or "-", f"{recipe.parameters:,}", *figures])
    yield from columns(rows, left=3)
    for name, recipe in catalogue().items():
        yield ""
        yield from wrapped(f"{name}: {recipe.purpose}")
        if (found := recipe.measured) is not None:
            yield from (f"  {line}" for line in wrapped(f"{found.goals}; {found.machine} [{found.source}]"))
    needed = {extra for recipe in catalogue().values() for extra in recipe.extras}
    if missing := sorted(extra for extra in needed if importlib.util.find_spec(EXTRAS[extra]) is None):
        yield ""
        yield f'Not installed here: pip install "jepaworld[{",".join(missing)}]"'
