"""From a recipe to its method."""

from __future__ import annotations

import torch

from app.errors import InvalidRequest
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from app.training.methods.infix import InfixMethod, infix_networks
from app.training.methods.method import Method
from app.training.methods.names import PREFIX_METHODS
from app.training.methods.prefix_method import PrefixMethod, prefix_networks
from app.training.methods.weights import WeightMethod
from app.training.recipe import Recipe


def make_method(model: FrozenModel, recipe: Recipe, on: Prefix | None = None) -> Method:
    """The method of a recipe that is complete for `model`; weight methods change the model.

    `on` is the frozen prefix that stands before a trained one. InvalidRequest if the method trains
    none.
    """
    if recipe.method in PREFIX_METHODS:
        return PrefixMethod(model, recipe, on)
    if on is not None:
        raise InvalidRequest(
            f"on: the method {recipe.method} trains no prefix, so it cannot stand behind one;"
            f" choose one of {', '.join(PREFIX_METHODS)}"
        )
    if recipe.method == "infix":
        return InfixMethod(model, recipe)
    return WeightMethod(model, recipe)


def count_parameters(model: FrozenModel, recipe: Recipe) -> int:
    """How many parameters a method trains that does not change the model. Nothing is allocated."""
    with torch.device("meta"):
        if recipe.method in PREFIX_METHODS:
            networks = [prefix_networks(model, recipe)]
        else:
            networks = [*infix_networks(model, recipe)]
    return sum(made.numel() for network in networks for made in network.parameters())
