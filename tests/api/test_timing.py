"""How long an answer takes says nothing: not about keys, not about other tenants' names.

Two-sample Kolmogorov-Smirnov tests over interleaved requests, the median of three rounds.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest

from app.model.frozen import FrozenModel
from app.tenancy.auth.keys import mint
from app.tenancy.auth.principal import Scope
from tests.api.guarded import EVERYTHING, Guarded, guarding, key_with_checksum
from tests.tiny import random_prefix

pytestmark = pytest.mark.slow

ROUNDS, SAMPLES = 3, 1500
TENANT_ONLY = EVERYTHING - {Scope.ADMIN}


def p_value(left: Sequence[float], right: Sequence[float]) -> float:
    """Of the hypothesis that both come from one distribution (Kolmogorov-Smirnov, asymptotic)."""
    ordered = sorted([(value, 0) for value in left] + [(value, 1) for value in right])
    counts, distance = [0, 0], 0.0
    for place, (value, side) in enumerate(ordered):
        counts[side] += 1
        if place + 1 == len(ordered) or ordered[place + 1][0] != value:
            gap = abs(counts[0] / len(left) - counts[1] / len(right))
            distance = max(distance, gap)
    size = math.sqrt(len(left) * len(right) / (len(left) + len(right)))
    scaled = (size + 0.12 + 0.11 / size) * distance
    if scaled < 0.2:
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))


def test_the_test_tells_what_differs_from_what_does_not() -> None:
    dice = random.Random(7)
    same = [[dice.expovariate(1) for _ in range(SAMPLES)] for _ in range(2)]
    other = [dice.expovariate(1) + 0.1 for _ in range(SAMPLES)]
    assert p_value(*same) > 0.01
    assert p_value(same[0], other) < 1e-4


def compare(
    arms: Sequence[Callable[[int], httpx.Response]], status: int, samples: int = SAMPLES
) -> float:
    """The median p over rounds in which both arms answer in random order, request by request."""
    dice = random.Random(11)
    values = []
    for _ in range(ROUNDS):
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(2 * samples):
            arm = dice.randrange(2)
            begun = time.perf_counter()
            reply = arms[arm](number)
            times[arm].append(time.perf_counter() - begun)
            assert reply.status_code == status
        values.append(p_value(*times))
    return statistics.median(values)


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("timing")) as guarded:
        for number in range(20):
            prefix = random_prefix(tiny_gpt2, 3, seed=number)
            assert guarded.push(f"theirs-{number:02}", prefix, guarded.key()).status_code == 201
        yield guarded


@pytest.mark.parametrize(
    "path", ["/v1/prefixes/{}", "/v1/models/{}", "/v1/prefixes/{}/aliases/latest"]
)
def test_a_foreign_name_takes_as_long_as_none(guarded: Guarded, path: str) -> None:
    with guarded.client(guarded.key("rival", TENANT_ONLY)) as client:
        p = compare(
            [
                lambda number: client.get(path.format(f"theirs-{number % 20:02}")),
                lambda number: client.get(path.format(f"absent-{number % 20:02}")),
            ],
            404,
        )
    assert p > 0.01


def test_a_foreign_prefix_takes_as_long_to_be_refused_as_none(guarded: Guarded) -> None:
    def ask(client: httpx.Client, name: str) -> httpx.Response:
        body = {"model": name, "prompt": "x", "max_tokens": 1}
        return client.post("/v1/completions", json=body)

    with guarded.client(guarded.key("rival", TENANT_ONLY)) as client:
        p = compare(
            [
                lambda number: ask(client, f"acme/theirs-{number % 20:02}"),
                lambda number: ask(client, f"acme/absent-{number % 20:02}"),
            ],
            404,
        )
    assert p > 0.01


@pytest.mark.parametrize("matching", [1, 16, 31])
def test_how_much_of_a_secret_is_right_does_not_show(guarded: Guarded, matching: int) -> None:
    valid = guarded.key()
    kid, secret = valid.split("_")[1:3]
    near = secret[:matching] + "".join("0" if c != "0" else "1" for c in secret[matching:])
    far = "".join("0" if c != "0" else "1" for c in secret)
    keys = [key_with_checksum(f"pfx_{kid}_{guess}") for guess in (near, far)]
    with guarded.client() as client:
        sent = [{"authorization": f"Bearer {key}"} for key in keys]
        p = compare(
            [
                lambda _: client.get("/v1/models", headers=sent[0]),
                lambda _: client.get("/v1/models", headers=sent[1]),
            ],
            401,
        )
    assert p > 0.01


def test_a_wrong_secret_takes_as_long_as_a_kid_that_nobody_has(guarded: Guarded) -> None:
    kid = guarded.key()[4:16]
    keys = [key_with_checksum(f"pfx_{kid}_{'x' * 32}"), mint().text]
    with guarded.client() as client:
        sent = [{"authorization": f"Bearer {key}"} for key in keys]
        p = compare(
            [
                lambda _: client.get("/v1/models", headers=sent[0]),
                lambda _: client.get("/v1/models", headers=sent[1]),
            ],
            401,
        )
    assert p > 0.01


def test_the_first_wrong_key_of_a_kid_in_use_takes_as_long_as_one_of_no_kid(
    guarded: Guarded,
) -> None:
    """Each key in use is tried once: the first attempt is the one that would tell."""
    services, used = guarded.server.services, []
    for number in range(12):
        services.tenants.create(f"many-{number}")
        used += [services.keyring.create(f"many-{number}")[1] for _ in range(100)]
    wrong = [key_with_checksum(f"pfx_{key.kid}_{'x' * 32}") for key in used]
    nobodys = [mint().text for _ in used]
    with guarded.client() as client:
        for key in used:
            sent = {"authorization": f"Bearer {key.text}"}
            assert client.get("/v1/published", headers=sent).status_code == 200
        arms = [iter(wrong), iter(nobodys)]
        p = compare(
            [
                lambda _: client.get(
                    "/v1/models", headers={"authorization": f"Bearer {next(arms[0])}"}
                ),
                lambda _: client.get(
                    "/v1/models", headers={"authorization": f"Bearer {next(arms[1])}"}
                ),
            ],
            401,
            samples=350,
        )
    assert p > 0.01
