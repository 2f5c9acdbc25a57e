"""What one tenant may use: rates, rows, queue, storage, and its share of the engine.

Limits are a value that the catalog stores as JSON and that travels with the caller's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

from app.errors import InvalidRequest

MAX_WEIGHT = 1000.0
MIN_WEIGHT = 0.001

_BOUNDS = {
    "requests_per_minute": (1, 10**9),
    "tokens_per_minute": (1, 10**12),
    "max_rows": (1, 10**6),
    "max_queue": (0, 10**6),
    "max_prefixes": (0, 10**9),
    "max_bytes": (0, 2**50),
    "max_queued_jobs": (0, 10**6),
    "max_running_jobs": (0, 10**6),
    "training_tokens_per_day": (0, 10**15),
    "max_training_bytes": (0, 2**50),
}


@dataclass(frozen=True)
class TenantLimits:
    """Limits of a tenant, over all replicas; None is "no limit". Raises InvalidRequest.

    `max_rows` counts rows decoding or waiting at the same time, `max_queue` requests waiting for
    rows in one replica, `max_bytes` stored tensors. `max_queued_jobs` and `max_running_jobs` count
    training jobs, `training_tokens_per_day` the tokens that they train on from midnight to midnight
    UTC, `max_training_bytes` the files that were uploaded for them. `weight` is the tenant's share
    of the engine beside others that are busy: twice the weight, twice the tokens.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_rows: int | None = None
    max_queue: int | None = None
    max_prefixes: int | None = None
    max_bytes: int | None = None
    max_queued_jobs: int | None = None
    max_running_jobs: int | None = None
    training_tokens_per_day: int | None = None
    max_training_bytes: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            _check_count(name, getattr(self, name), least, most)
        object.__setattr__(self, "weight", _checked_weight(self.weight))

    @cached_property
    def are_counted(self) -> bool:
        """Whether any limit is set that needs counting at admission."""
        counted = (self.requests_per_minute, self.tokens_per_minute, self.max_rows)
        return any(limit is not None for limit in counted)

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> TenantLimits:
        """The limits that a JSON object stands for; a key that is left out or null is no limit."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(str(key)[:60] for key in content if key not in known)
        if unknown:
            raise InvalidRequest(
                f"limits: {ascii(unknown[0])} is not a limit; there are {', '.join(known)}",
                param="limits",
            )
        given = {name: value for name, value in content.items() if value is not None}
        return cls(**given)  # type: ignore[arg-type]  # checked in __post_init__

    def to_json(self) -> dict[str, int | float]:
        """The object that `from_json` reads; what is not limited is left out."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None}


def _check_count(name: str, value: object, least: int, most: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidRequest(
            f"limits.{name} is {_shown(value)}; it must be an integer from {least} to {most}, or "
            "null for no limit",
            param=f"limits.{name}",
        )


def _checked_weight(value: object) -> float:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and MIN_WEIGHT <= value <= MAX_WEIGHT
    ):
        return float(value)
    raise InvalidRequest(
        f"limits.weight is {_shown(value)}; it must be a number from {MIN_WEIGHT} to {MAX_WEIGHT}",
        param="limits.weight",
    )


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of {value.bit_length()} bits"
    return ascii(value)[:60]
