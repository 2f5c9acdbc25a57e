"""Which version of a split alias serves a request: by weight, and always the same for a user.

Weighted rendezvous hashing in its logarithmic form (Schindelhauer and Schomaker, "Weighted
distributed hash tables", SPAA 2005): every version draws -ln(h) / weight, with h in (0, 1) from a
hash of the user and the version, and the least wins. The shares are those of the weights. A change
of weights or versions moves as few users as possible.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from app.errors import InvalidRequest
from app.registry.types import Resolved

MIN_VERSIONS, MAX_VERSIONS = 2, 16
"""How many versions a split may have."""
MAX_WEIGHT = 10_000
"""Weights are integers from 1."""
_STEPS = 2**64


def check_split(split: Mapping[str, int]) -> None:
    """InvalidRequest unless the number of versions and every weight is within its bounds."""
    if not MIN_VERSIONS <= len(split) <= MAX_VERSIONS:
        raise InvalidRequest(
            f"a split has {MIN_VERSIONS} to {MAX_VERSIONS} versions, not {len(split)}",
            param="split",
        )
    for start, weight in split.items():
        integer = isinstance(weight, int) and not isinstance(weight, bool)
        if not integer or not 1 <= weight <= MAX_WEIGHT:
            raise InvalidRequest(
                f"the weight of {start[:12]!a} must be an integer from 1 to {MAX_WEIGHT}",
                param="split",
            )


@dataclass(frozen=True, slots=True)
class Split:
    """What a split alias stands for: versions with their weights, in the same order."""

    versions: tuple[Resolved, ...]
    weights: tuple[int, ...]

    def choose(self, caller: str, alias: str, user: str | None) -> Resolved:
        """The version for a user of a tenant; without a user, a version at random."""
        if user is None:
            return self._by_chance()
        prefix = self.versions[0]
        # no name holds a NUL, and the user comes last: no two users are written alike
        whose = "\0".join((caller, prefix.tenant, prefix.name, alias, user))
        seed = hashlib.blake2b(whose.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        draws = [
            -math.log(_fraction(seed, version.digest)) / weight
            for version, weight in zip(self.versions, self.weights, strict=True)
        ]
        return self.versions[draws.index(min(draws))]

    def _by_chance(self) -> Resolved:
        bounds = list(accumulate(self.weights))
        return self.versions[bisect_right(bounds, secrets.randbelow(bounds[-1]))]


def _fraction(seed: bytes, digest: str) -> float:
    """A number above 0 and below 1 that seems drawn at random for each pair."""
    drawn = hashlib.blake2b(digest.encode(), digest_size=8, key=seed).digest()
    return (int.from_bytes(drawn, "big") // 4096 * 4096 + 2048) / _STEPS
