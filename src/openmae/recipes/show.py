"""What a recipe sets, in words."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from openmae.config import check_name, flag_of

Recipes = Mapping[str, Callable[[], dict[str, Any]]]


def recipe_lines(recipes: Recipes, name: str | None) -> list[str]:
    """A recipe's claim and settings; without a name, the first line of each.

    Raises:
        RequestError: there is no recipe of that name.
    """
    check_name("--recipe", name, recipes)
    if name is None:
        return [f"{known:20} {_doc(recipe).splitlines()[0]}" for known, recipe in recipes.items()]
    recipe = recipes[name]
    return [f"{name}: {_doc(recipe)}", "", *(f"  {flag_of(k)} {_words(v)}" for k, v in recipe().items())]


def _doc(recipe: Callable[[], dict[str, Any]]) -> str:
    text = inspect.getdoc(recipe)
    assert text, "a recipe says what it claims"
    return text


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
