"""TenantLimits: what the catalog stores and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.tenancy.limits.limits import TenantLimits

COUNTS = (
    "requests_per_minute",
    "tokens_per_minute",
    "max_rows",
    "max_queue",
    "max_prefixes",
    "max_bytes",
)


def test_nothing_is_limited_unless_said() -> None:
    limits = TenantLimits()
    assert all(getattr(limits, name) is None for name in COUNTS)
    assert limits.weight == 1.0
    assert TenantLimits.from_json({}) == limits


def test_null_is_no_limit() -> None:
    assert TenantLimits.from_json(dict.fromkeys((*COUNTS, "weight"))) == TenantLimits()


@given(
    st.fixed_dictionaries(
        {},
        optional={name: st.none() | st.integers(1, 10**6) for name in COUNTS}
        | {"weight": st.floats(0.001, 1000)},
    )
)
def test_limits_come_back_from_json_as_they_were(content: dict[str, Any]) -> None:
    limits = TenantLimits.from_json(content)
    assert TenantLimits.from_json(limits.to_json()) == limits


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(
    "value",
    [-1, 1.0, True, "1", [], {}, math.nan, math.inf, 2**63, pytest.param(10**5000, id="huge")],
)
def test_a_count_that_is_none_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TenantLimits.from_json({name: value})
    assert caught.value.param == f"limits.{name}"
    assert name in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "max_rows"])
def test_zero_rates_are_refused_since_they_only_lock_out(name: str) -> None:
    with pytest.raises(InvalidRequest, match="from 1 to"):
        TenantLimits.from_json({name: 0})


@pytest.mark.parametrize("name", ["max_queue", "max_prefixes", "max_bytes"])
def test_nothing_may_be_stored_or_wait(name: str) -> None:
    assert TenantLimits.from_json({name: 0}).to_json()[name] == 0


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1", True, [], 10**40, 1e-9, 1e9])
def test_a_weight_is_a_positive_number_within_bounds(value: object) -> None:
    with pytest.raises(InvalidRequest, match="weight"):
        TenantLimits.from_json({"weight": value})


def test_an_unknown_limit_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(InvalidRequest, match=r"'max_row' is not a limit.*max_rows"):
        TenantLimits.from_json({"max_row": 3})
