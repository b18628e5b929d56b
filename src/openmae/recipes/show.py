"""A recipe as text: what it claims and what it sets."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from openmae.config import check_name, flag_of, format_value

Recipes = Mapping[str, Callable[[], dict[str, Any]]]


def recipe_lines(recipes: Recipes, name: str | None) -> list[str]:
    """A recipe's claim and settings; without a name, the first line of each recipe's claim.

    Raises:
        RequestError: there is no recipe of that name.
    """
    check_name("--recipe", name, recipes)
    if name is None:
        return [f"{known:20} {_doc(recipe).splitlines()[0]}" for known, recipe in recipes.items()]
    recipe = recipes[name]
    return [f"{name}: {_doc(recipe)}", "", *(f"  {flag_of(k)} {format_value(v)}" for k, v in recipe().items())]


def _doc(recipe: Callable[[], dict[str, Any]]) -> str:
    text = inspect.getdoc(recipe)
    assert text, "a recipe says what it claims"
    return text
