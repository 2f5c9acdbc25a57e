"""The rates and lengths that `polyprefix experiment` found best for a base model, as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest
from app.training.methods.names import sized_method
from app.training.recipe import Recipe

CHOICES_FILE = "chosen.json"


@dataclass(frozen=True)
class Choice:
    """What was chosen for one base model: a prefix length (None: nothing), and rates by method.

    `rates` has methods of `polyprefix train`, and adapters by size (`adapter-3%`), which are those
    of `train --method adapter` with that share.
    """

    model: str = ""
    length: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with the choice where it gives no rate or no length."""
        length = self.length if recipe.method == "prefix" else None
        starts = recipe.initial_words is not None or recipe.initial_prefix is not None
        if recipe.length is not None or starts or recipe.preset != "full-data":
            length = recipe.length
        return replace(recipe, length=length, lr=recipe.lr or self._rate(recipe))

    def _rate(self, recipe: Recipe) -> float | None:
        """The rate of the method and its size, else that of the method whatever its size."""
        sized = sized_method(recipe.method, recipe.adapter_share)
        return self.rates.get(sized, self.rates.get(recipe.method))


class Choices:
    """The choices in a JSON file, by the base model's fingerprint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, fingerprint: str) -> Choice:
        """What was chosen for a base model. InvalidRequest if the file is damaged."""
        found = self._read().get(fingerprint, {})
        try:
            length, rates = found.get("length"), found.get("rates", {})
            return Choice(
                str(found.get("model", "")),
                None if length is None else int(length),
                {str(name): float(rate) for name, rate in rates.items()},
                found.get("evidence", {}),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise InvalidRequest(f"{self.path} is damaged ({error}); remove the file") from error

    def keep(self, fingerprint: str, choice: Choice) -> None:
        """Write a base model's choice; the others stay."""
        written = {
            "model": choice.model,
            "length": choice.length,
            "rates": dict(choice.rates),
            "evidence": dict(choice.evidence),
        }
        everything = {**self._read(), fingerprint: written}
        staged = self.path.with_name(self.path.name + ".tmp")
        staged.write_text(json.dumps(everything, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        staged.replace(self.path)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise InvalidRequest(f"{self.path} is not JSON ({error}); remove the file") from error
        if not isinstance(found, dict):
            raise InvalidRequest(f"{self.path} must be a JSON object; remove the file")
        return found
