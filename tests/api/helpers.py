"""What the tests of the HTTP API share: event streams, a held or slow engine, plain greedy text."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from transformers import AutoTokenizer

from app.prefix.prefix import Prefix
from tests.equivalence.reference import greedy_logits, plain_model
from tests.server import RunningServer

BASE = "tiny-gpt2"
END = 0
"""The id of `<|endoftext|>`."""

NO_END = {str(END): -100}
"""A `logit_bias` under which rows run to their token limit."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"

Json = dict[str, Any]


def with_metadata(prefix: Prefix, **changes: object) -> Prefix:
    """The same tensors under other metadata."""
    return replace(prefix, metadata=replace(prefix.metadata, **changes))


def complete(client: httpx.Client, prompt: object = "the", **fields: object) -> httpx.Response:
    """`POST /v1/completions` to the base model, greedily, unless `fields` say otherwise."""
    body = {"model": BASE, "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}
    return client.post("/v1/completions", json=body)


def text_of(reply: httpx.Response) -> str:
    """The only choice's text of a good reply."""
    assert reply.status_code == 200, reply.text
    [choice] = reply.json()["choices"]
    return choice["text"]


def error_of(reply: httpx.Response) -> Json:
    """The error of a reply in OpenAI's shape."""
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def events_of(text: str) -> list[Any]:
    """The data of an event stream's events; `[DONE]` as it is."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    return [data if data == "[DONE]" else json.loads(data) for data in map(_data_of, blocks)]


def _data_of(block: str) -> str:
    assert block.startswith("data: ")
    assert "\n" not in block
    return block.removeprefix("data: ")


def letter_bias(services: SimpleNamespace) -> dict[str, int]:
    """A `logit_bias` under which every token is one letter."""
    ids = [services.model.text.encode(letter) for letter in LETTERS]
    return {str(token): 100 for [token] in ids}


def plain_text(
    folder: Path, prefixes: Sequence[Prefix], prompt: str | Sequence[int], count: int
) -> str:
    """What transformers alone says greedily, `count` tokens at most."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    made: list[int] = []
    while len(made) < count and END not in made:
        logits = greedy_logits(plain_model(folder), prefixes, prompt_ids, [*made, END])
        made.append(int(logits[-1].argmax()))
    return tokenizer.decode(made, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@contextmanager
def held(services: SimpleNamespace) -> Iterator[None]:
    """Within the block no step of the engine ends."""
    gate = threading.Event()
    with _before_steps(services, lambda: gate.wait(30)):
        try:
            yield
        finally:
            gate.set()


@contextmanager
def slowed(services: SimpleNamespace, seconds: float) -> Iterator[None]:
    """Within the block every step takes this much longer."""
    with _before_steps(services, lambda: time.sleep(seconds)):
        yield


@contextmanager
def _before_steps(services: SimpleNamespace, pause: Callable[[], object]) -> Iterator[None]:
    runner = services.engine.runner
    run = runner.run

    def paused(plan: object) -> object:
        pause()
        return run(plan)

    runner.run = paused
    try:
        yield
    finally:
        runner.run = run


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition that must come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)


def draining(server: RunningServer) -> None:
    """Let the server take no new requests, as it does when it shuts down."""
    asyncio.run_coroutine_threadsafe(server.services.engine.drain(0.0), server.loop).result()


def until_idle(server: RunningServer) -> None:
    """Wait until the engine has nothing left to do."""
    until(lambda: server.services.engine.admission.num_open == 0)
    until(lambda: server.services.engine.progress().running == 0)
