"""From a recipe to its method."""

from __future__ import annotations

from app.model.frozen import FrozenModel
from app.training.methods.infix import InfixMethod
from app.training.methods.method import Method
from app.training.methods.names import PREFIX_METHODS
from app.training.methods.prefix_method import PrefixMethod
from app.training.methods.weights import WeightMethod
from app.training.recipe import Recipe


def make_method(model: FrozenModel, recipe: Recipe) -> Method:
    """The method of a recipe that is complete for `model`; weight methods change the model."""
    if recipe.method in PREFIX_METHODS:
        return PrefixMethod(model, recipe)
    if recipe.method == "infix":
        return InfixMethod(model, recipe)
    return WeightMethod(model, recipe)
