"""Poison: whatever goes wrong in one row ends that request alone, and the others' tokens stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from app.engine.config import EngineConfig
from app.engine.request import GenerationRequest, RequestFailed, RequestFinished
from app.errors import DeadlineExceeded, GenerationFault, PolyprefixError
from app.model.frozen import FrozenModel
from app.model.text import Text
from app.prefix.prefix import KeyValues, Prefix
from tests.engine.harness import SteppedEngine, make_request
from tests.server import RunningServer, serving
from tests.tiny import CONTEXT, VOCABULARY, random_prefix

CONFIG = EngineConfig(max_step_tokens=40, kv_bytes=64 << 20)
PLACES = pytest.mark.parametrize("place", [0, 3, 6], ids=["first", "middle", "last"])


def healthy(model: FrozenModel) -> list[GenerationRequest]:
    """Six requests of many kinds: prefixes, none, sampled, several rows, a long prompt."""

    def prefix(length: int) -> Prefix:
        return random_prefix(model, length, seed=length)

    return [
        make_request("bare", range(40, 52), 12),
        make_request("prefixed", range(60, 66), 14, [prefix(9)]),
        make_request("composed", range(70, 73), 10, [prefix(4), prefix(6)]),
        make_request("sampled", range(80, 95), 12, [prefix(9)], temperature=1.0, seed=7),
        make_request("rows", range(30, 44), 9, [prefix(5)], n=3, temperature=0.8, seed=8),
        make_request("long", range(100, 175), 8),
    ]


def no_fault(request: GenerationRequest, _: SteppedEngine, __: pytest.MonkeyPatch) -> None:
    """For poison that is in the request itself."""


def poisoned_prefix(model: FrozenModel, value: float) -> Prefix:
    prefix = random_prefix(model, 5, seed=99)
    prefix.decoder.values[1, 2, 3, 4] = value
    return prefix


def shapeless_prefix(model: FrozenModel) -> Prefix:
    shape = model.spec.decoder
    wrong = torch.zeros(shape.layers, shape.kv_heads, 5, shape.head_dim + 1)
    prefix = random_prefix(model, 5)
    return Prefix({"decoder": KeyValues(wrong, wrong)}, prefix.metadata, prefix.digest)


def break_detokenizer(
    request: GenerationRequest, stepped: SteppedEngine, patch: pytest.MonkeyPatch
) -> None:
    """The third token of the poisoned row cannot be turned into text."""
    stepped.step()
    [row, *_] = [row for row in stepped.rows if row.request.id == request.id]
    push: Callable[[int], str] = row.output.detokenizer.push

    def fail_at_the_third(token: int) -> str:
        if row.output.num_tokens == 3:
            raise UnicodeError("no such byte")
        return push(token)

    patch.setattr(row.output.detokenizer, "push", fail_at_the_third)


def break_token_text(
    request: GenerationRequest, _: SteppedEngine, patch: pytest.MonkeyPatch
) -> None:
    """One token of the poisoned prompt has no text."""
    token_text, bad = Text.token_text, request.prompt_ids[0]

    def fail_for_one(text: Text, token: int) -> str:
        if token == bad:
            raise UnicodeError("no such byte")
        return token_text(text, token)

    patch.setattr(Text, "token_text", fail_for_one)


Fault = Callable[[GenerationRequest, SteppedEngine, pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Poison:
    """How one request is made to fail, by itself or by `cause`, and what it is told."""

    make: Callable[[FrozenModel], GenerationRequest]
    message: str
    cause: Fault = no_fault


POISONS = {
    "a prefix that cannot be loaded": Poison(
        lambda model: make_request("bad", range(20, 30), 9, [shapeless_prefix(model)]),
        "could not be placed",
    ),
    "a prompt whose forward pass raises": Poison(
        lambda _: make_request("bad", [20, 21, VOCABULARY + 5], 9), "forward pass failed"
    ),
    "a late chunk whose forward pass raises": Poison(
        lambda _: make_request("bad", [*range(20, 80), VOCABULARY + 5], 9), "forward pass failed"
    ),
    "a decoding step that raises": Poison(
        lambda _: make_request("bad", range(CONTEXT - 4), 20), "forward pass failed"
    ),
    "logits that are NaN": Poison(
        lambda model: make_request("bad", range(20, 30), 9, [poisoned_prefix(model, float("nan"))]),
        "not finite",
    ),
    "logits that are infinite": Poison(
        lambda model: make_request("bad", range(20, 30), 9, [poisoned_prefix(model, float("inf"))]),
        "not finite",
    ),
    "NaN in several rows that sample": Poison(
        lambda model: make_request(
            "bad",
            range(20, 30),
            9,
            [poisoned_prefix(model, float("nan"))],
            n=3,
            temperature=1.0,
        ),
        "not finite",
    ),
    "a sampler that raises": Poison(
        lambda _: make_request("bad", range(20, 30), 9, logit_bias={5: "much"}),
        "could not be sampled",
    ),
    "a prompt that cannot be scored": Poison(
        lambda _: make_request("bad", range(20, 30), 9, echo=True, logprobs=-1),
        "the row failed",
    ),
    "a detokenizer that raises": Poison(
        lambda _: make_request("bad", range(20, 30), 9),
        "text failed: no such byte",
        break_detokenizer,
    ),
    "a prompt's text that raises": Poison(
        lambda _: make_request("bad", [319, *range(20, 30)], 9, echo=True, logprobs=0),
        "text failed: no such byte",
        break_token_text,
    ),
}


def run(
    model: FrozenModel,
    requests: list[GenerationRequest],
    patch: pytest.MonkeyPatch,
    bad: GenerationRequest | None = None,
    cause: Fault = no_fault,
) -> SteppedEngine:
    """Run `requests` to their end while `cause` strikes `bad`."""
    stepped = SteppedEngine(model, CONFIG, patch)
    for request in requests:
        stepped.add(request)
    if bad is not None:
        cause(bad, stepped, patch)
    stepped.run()
    return stepped


def all_tokens(stepped: SteppedEngine, requests: list[GenerationRequest]) -> dict[str, list]:
    """Tokens of every row by request; each request must have finished."""
    for request in requests:
        assert isinstance(stepped.terminal(request.id), RequestFinished), request.id
    return {
        request.id: [stepped.tokens(request.id, row) for row in range(request.n)]
        for request in requests
    }


@pytest.fixture(scope="module")
def expected(tiny_gpt2: FrozenModel) -> dict[str, list]:
    """What the healthy requests give without any poison."""
    requests = healthy(tiny_gpt2)
    with pytest.MonkeyPatch.context() as patch:
        tokens = all_tokens(run(tiny_gpt2, requests, patch), requests)
    lengths = {request.id: request.sampling.max_tokens for request in requests}
    assert all(len(row) == lengths[name] for name, rows in tokens.items() for row in rows)
    return tokens


def error_of(stepped: SteppedEngine) -> PolyprefixError:
    end = stepped.terminal("bad")
    assert isinstance(end, RequestFailed)
    return end.error


@PLACES
@pytest.mark.parametrize("kind", POISONS)
def test_a_fault_ends_its_request_alone_with_a_reason_and_leaves_the_others_tokens(
    tiny_gpt2: FrozenModel,
    expected: dict[str, list],
    kind: str,
    place: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison = POISONS[kind]
    good, bad = healthy(tiny_gpt2), poison.make(tiny_gpt2)
    requests = [*good[:place], bad, *good[place:]]
    stepped = run(tiny_gpt2, requests, monkeypatch, bad, poison.cause)
    error = error_of(stepped)
    assert isinstance(error, GenerationFault)
    assert poison.message in error.message
    assert all_tokens(stepped, good) == expected
    assert stepped.engine.table.reserved_columns == 0


@PLACES
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 9])
def test_a_client_that_goes_away_at_any_time_leaves_the_others_tokens(
    tiny_gpt2: FrozenModel,
    expected: dict[str, list],
    steps: int,
    place: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def go_away(bad: GenerationRequest, stepped: SteppedEngine, _: pytest.MonkeyPatch) -> None:
        for _ in range(steps):
            stepped.step()
        stepped.cancel(bad.id)

    good, bad = healthy(tiny_gpt2), make_request("bad", range(20, 60), 30, n=2)
    requests = [*good[:place], bad, *good[place:]]
    stepped = run(tiny_gpt2, requests, monkeypatch, bad, go_away)
    assert len(stepped.tokens("bad")) < 30
    assert all_tokens(stepped, good) == expected
    assert stepped.engine.table.reserved_columns == 0


@PLACES
def test_a_deadline_that_passes_leaves_the_others_tokens(
    tiny_gpt2: FrozenModel,
    expected: dict[str, list],
    place: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = healthy(tiny_gpt2)
    requests = [*good[:place], make_request("bad", range(20, 30), 9, deadline=0.0), *good[place:]]
    stepped = run(tiny_gpt2, requests, monkeypatch)
    assert isinstance(error_of(stepped), DeadlineExceeded)
    assert all_tokens(stepped, good) == expected


@pytest.mark.parametrize("decode_attention", ["sdpa", "matmul", "native"])
@pytest.mark.parametrize("kind", POISONS)
def test_slots_that_held_poison_are_reused_without_harm(
    tiny_gpt2: FrozenModel,
    expected: dict[str, list],
    kind: str,
    decode_attention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many poisoned rows leave, then healthy ones move into the same slots."""
    poison, config = POISONS[kind], EngineConfig(decode_attention=decode_attention)
    stepped = SteppedEngine(tiny_gpt2, config, monkeypatch)
    for index in range(6):
        bad = poison.make(tiny_gpt2)
        object.__setattr__(bad, "id", f"bad {index}")
        stepped.add(bad)
        if index == 0:
            poison.cause(bad, stepped, monkeypatch)
    stepped.run()
    good = healthy(tiny_gpt2)
    for request in good:
        stepped.add(request)
    stepped.run()
    assert all_tokens(stepped, good) == expected


def fail_at_the_first_token(stepped: SteppedEngine) -> None:
    stepped.step()
    assert isinstance(stepped.terminal("bad"), RequestFailed)


def fail_while_decoding(stepped: SteppedEngine) -> None:
    """NaN turns up in a row that has given tokens already."""
    stepped.step()
    [[row]] = [rows for rows in stepped.engine.table.rows if rows]
    assert row.num_generated == 1
    assert row.slot is not None
    keys = stepped.engine.pool.keys(row.slot.length_class, 0)[row.slot.index]
    with torch.inference_mode():
        keys[:, : row.num_cached] = NAN
    stepped.step()
    assert isinstance(stepped.terminal("bad"), RequestFailed)


def cancel_within_the_prompt(stepped: SteppedEngine) -> None:
    """A chunk has written NaN, but no logits were looked at yet."""
    stepped.step()
    assert stepped.terminal("bad") is None
    stepped.cancel("bad")


NAN = float("nan")
ENDINGS: dict[str, tuple[float, int, Callable[[SteppedEngine], None]]] = {
    "at its first token": (NAN, 9, fail_at_the_first_token),
    "while it decodes": (1.0, 9, fail_while_decoding),
    "cancelled within its prompt": (NAN, 20, cancel_within_the_prompt),
}
"""How a row with NaN ends → what its prefix holds, the length of its prompt, what happens."""


@pytest.mark.parametrize("decode_attention", ["sdpa", "matmul", "native"])
@pytest.mark.parametrize("how", ENDINGS)
def test_nan_beyond_the_columns_of_a_successor_never_reaches_it(
    tiny_gpt2: FrozenModel,
    expected: dict[str, list],
    how: str,
    decode_attention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The successor is shorter; attention reads whole slots, or as far as the longest neighbour."""
    value, num_prompt, end = ENDINGS[how]
    config = EngineConfig(max_step_tokens=16, decode_attention=decode_attention)
    stepped = SteppedEngine(tiny_gpt2, config, monkeypatch)
    prefix = random_prefix(tiny_gpt2, 29 - num_prompt, seed=99)
    prefix.decoder.keys[0] = value
    stepped.add(make_request("bad", range(20, 20 + num_prompt), 3, [prefix]))
    end(stepped)
    good = healthy(tiny_gpt2)
    for request in good:
        stepped.add(request)
    stepped.run()
    assert all_tokens(stepped, good) == expected


def test_many_faults_in_one_batch_each_end_their_own(
    tiny_gpt2: FrozenModel, expected: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = healthy(tiny_gpt2)
    requests: list[GenerationRequest] = []
    for index, kind in enumerate(POISONS):
        bad = POISONS[kind].make(tiny_gpt2)
        object.__setattr__(bad, "id", f"bad {index}")
        requests.extend([bad, *good[index : index + 1]])
    stepped = run(tiny_gpt2, requests, monkeypatch)
    for index, poison in enumerate(POISONS.values()):
        end = stepped.terminal(f"bad {index}")
        assert isinstance(end, RequestFailed) == (poison.cause is no_fault)
    assert all_tokens(stepped, good) == expected


# --- over HTTP ---------------------------------------------------------------------------


def stored_file(server: RunningServer, digest: str) -> Path:
    """Where the store keeps a version."""
    [path] = [path for path in (server.root / "store").rglob("*") if digest in path.name]
    return path


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_version_that_the_store_lost_or_damaged_fails_by_name_and_others_are_served(
    tiny_gpt2: FrozenModel, tmp_path: Path, how: str
) -> None:
    prefixes = [random_prefix(tiny_gpt2, 4, seed=seed) for seed in range(2)]
    body = {"prompt": [30, 31, 32], "max_tokens": 4, "temperature": 0}
    with serving(tiny_gpt2, tmp_path) as server, server.client() as client:
        for name, prefix in zip(("bad", "good"), prefixes, strict=True):
            assert server.push(name, prefix).status_code == 201
        path = stored_file(server, prefixes[0].digest)
        if how == "lost":
            path.unlink()
        else:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.chmod(0o644)
            path.write_bytes(data)
        bad = client.post("/v1/completions", json={"model": "bad", **body})
        good = client.post("/v1/completions", json={"model": "good", **body})
        assert bad.status_code >= 400
        assert prefixes[0].digest[:12] in bad.json()["error"]["message"]
        assert good.status_code == 200
        assert good.headers["x-prefix-version"] == prefixes[1].digest
