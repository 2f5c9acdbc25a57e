"""What no tenant takes beyond its share: rows, memory and queue that stay free for who comes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stock:
    """One thing that tenants share: there is `whole` of it, `free` is left, `reserve` is kept."""

    whole: int
    reserve: int
    free: int

    def allows(self, held: int, wanted: int, fair: float = 1.0) -> bool:
        """Whether a tenant that holds `held` may take `wanted` more; `fair` is its part of all.

        The reserve is for tenants that have less than their fair share of the rest, and each leaves
        as much of it to others as it then has: of many that come at once, each finds something.
        """
        if self.reserve == 0:
            return True
        left = self.free - wanted
        return left >= self.reserve or held + wanted <= min(
            left, fair * (self.whole - self.reserve)
        )


def reserve_of(whole: int, part: float) -> int:
    """How much of `whole` is kept: that part of it, but 1 at least of what can be divided."""
    if part <= 0 or whole < 2:
        return 0
    return max(1, int(part * whole))
