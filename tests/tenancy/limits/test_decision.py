"""Headers and refusals: what clients of OpenAI read."""

from __future__ import annotations

import pytest

from app.errors import InvalidRequest
from app.tenancy.limits.decision import (
    Cost,
    LimitDecision,
    check_possible,
    duration,
    rate_headers,
    refusal,
)
from app.tenancy.limits.limits import TenantLimits


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.00001, "1ms"),
        (0.12, "120ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (61.5, "1m1.5s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_headers_tell_limit_rest_and_time_to_full() -> None:
    limits = TenantLimits(requests_per_minute=60, tokens_per_minute=6000)
    assert rate_headers(limits, LimitDecision(True, 15.5, 600, 3)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "44",
        "x-ratelimit-reset-requests": "15.5s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5400",
        "x-ratelimit-reset-tokens": "6s",
    }


def test_what_is_not_limited_has_no_headers() -> None:
    assert rate_headers(TenantLimits(max_rows=3), LimitDecision(True, 0, 0, 1)) == {}
    only = rate_headers(TenantLimits(tokens_per_minute=60), LimitDecision(True, 0, 60))
    assert {name.rpartition("-")[2] for name in only} == {"tokens"}
    assert only["x-ratelimit-remaining-tokens"] == "0"


def test_storage_queue_and_weight_need_no_counting() -> None:
    assert not TenantLimits(max_queue=1, max_prefixes=1, max_bytes=1, weight=2).are_counted
    for name in ("requests_per_minute", "tokens_per_minute", "max_rows"):
        assert TenantLimits.from_json({name: 1}).are_counted


LIMITS = TenantLimits(requests_per_minute=6, tokens_per_minute=600, max_rows=4)


@pytest.mark.parametrize(
    ("standing", "limit", "seconds"),
    [
        (LimitDecision(False, 6, 0, 0), "6 requests per minute", 10),
        (LimitDecision(False, 5.05, 0, 0), "6 requests per minute", 1),
        (LimitDecision(False, 0, 600, 0), "600 tokens per minute", 10),
        (LimitDecision(False, 0, 550, 0), "600 tokens per minute", 5),
        (LimitDecision(False, 0, 0, 3), "4 rows at a time", 1),
        (LimitDecision(False, 5.5, 600, 4), "600 tokens per minute", 10),
    ],
)
def test_a_refusal_names_the_limit_that_lasts_longest(
    standing: LimitDecision, limit: str, seconds: float
) -> None:
    error = refusal(LIMITS, standing, Cost(tokens=100, rows=2))
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert f"limit of {limit} is reached" in error.message
    assert error.retry_after == seconds
    assert error.headers == rate_headers(LIMITS, standing)


def test_what_never_fits_is_refused_for_good() -> None:
    check_possible(LIMITS, Cost(tokens=600, rows=4))
    check_possible(TenantLimits(), Cost(tokens=10**9, rows=10**6))
    with pytest.raises(InvalidRequest, match="601 tokens.*600 tokens per minute") as caught:
        check_possible(LIMITS, Cost(tokens=601, rows=1))
    assert caught.value.status == 400
    with pytest.raises(InvalidRequest, match="5 rows.*4 rows at a time"):
        check_possible(LIMITS, Cost(tokens=1, rows=5))
