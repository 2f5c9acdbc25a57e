"""Hot swap: while names get new versions, aliases move and prefixes are evicted, every reply is
that of the version it names."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

import httpx
import pytest
import torch
from transformers import DynamicCache

from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from app.runtime.prefix_cache import TierStats
from tests.equivalence.reference import plain_model
from tests.server import RunningServer, serving
from tests.tiny import random_prefix

NAMES, VERSIONS, REQUESTS = 20, 5, 15
CHANGES = 40
"""Readers ask until the writer has changed as much: enough versions to evict others."""
LENGTH, MAX_TOKENS = 80, 12
"""80 positions of the tiny model are 40 KiB: 25 prefixes fit a tier of 1 MiB, 100 do not."""

PROMPT = tuple(range(40, 50))


@dataclass(frozen=True)
class Version:
    """A prefix and the text that the model gives with it, alone."""

    prefix: Prefix
    text: str


@torch.inference_mode()
def greedy_alone(model: FrozenModel, folder: Path, prefix: Prefix) -> str | None:
    """Plain transformers' greedy text; None if a choice is nearly a tie."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(
        zip(prefix.decoder.keys, prefix.decoder.values, strict=True)
    ):
        cache.update(keys[None], values[None], layer)
    pending, position = list(PROMPT), prefix.metadata.position_offset
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS and not set(tokens) & model.text.eos_token_ids:
        output = plain_model(folder)(
            input_ids=torch.tensor([pending]),
            position_ids=torch.arange(position, position + len(pending))[None],
            past_key_values=cache,
        )
        best = output.logits[0, -1].topk(2)
        if float(best.values[0] - best.values[1]) <= 1e-4:
            return None
        position += len(pending)
        pending = [int(best.indices[0])]
        tokens += pending
    return model.text.decode(tokens)


@pytest.fixture(scope="module")
def versions(tiny_gpt2: FrozenModel, tiny_gpt2_folder: Path) -> list[list[Version]]:
    """Versions by name; the texts of all are different, so that a mix-up shows."""
    by_text: dict[str, Version] = {}
    for seed in range(2 * NAMES * VERSIONS):
        prefix = random_prefix(tiny_gpt2, LENGTH, seed=seed, position_offset=5)
        text = greedy_alone(tiny_gpt2, tiny_gpt2_folder, prefix)
        if text is not None:
            by_text[text] = Version(prefix, text)
    made = list(by_text.values())
    assert len(made) >= NAMES * VERSIONS
    return [made[name * VERSIONS : (name + 1) * VERSIONS] for name in range(NAMES)]


@dataclass
class Seen:
    """What the clients found: replies that were wrong, versions and tiers that answered."""

    wrong: list[str] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)


def text_of(reply: httpx.Response, streamed: bool) -> str:
    if not streamed:
        return str(reply.json()["choices"][0]["text"])
    events = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


class Clients:
    """Twenty readers, one per name, and one writer that never stops changing what names mean."""

    def __init__(self, server: RunningServer, versions: list[list[Version]]) -> None:
        self.server, self.versions = server, versions
        self.by_digest = {item.prefix.digest: item for row in versions for item in row}
        self.seen = Seen()
        self.done = threading.Event()
        self.changes = 0

    def read(self, name: int) -> None:
        """Ask for one name in every way, again and again, and check what comes back."""
        dice = random.Random(name)
        own = [item.prefix.digest for item in self.versions[name]]
        with self.server.client() as client:
            for turn in takewhile(self.goes_on, count()):
                asked = dice.choice(["", "@stable", f"@{own[0][:12]}"])
                body = {
                    "model": f"p{name}{asked}",
                    "prompt": list(PROMPT),
                    "max_tokens": MAX_TOKENS,
                    "temperature": 0,
                    "stream": turn % 2 == 1,
                }
                reply = client.post("/v1/completions", json=body)
                digest = reply.headers.get("x-prefix-version", "")
                fits = digest == own[0] if "@" in asked and asked != "@stable" else digest in own
                right = reply.status_code == 200 and fits
                right = right and text_of(reply, turn % 2 == 1) == self.by_digest[digest].text
                if not right:
                    self.seen.wrong.append(f"{body['model']} {digest[:12]}: {reply.text}")
                self.seen.versions[digest] += 1
                self.seen.tiers[reply.headers.get("x-prefix-tier", "")] += 1

    def goes_on(self, turn: int) -> bool:
        """Whether a reader asks once more: a slow writer is waited for."""
        return turn < REQUESTS or (self.changes < CHANGES and turn < 20 * REQUESTS)

    def write(self) -> None:
        """Upload versions of the same names and move their aliases until the readers are done."""
        dice = random.Random(0)
        with self.server.client() as client:
            while not self.done.is_set():
                name, version = dice.randrange(NAMES), dice.randrange(1, VERSIONS)
                prefix = self.versions[name][version].prefix
                assert self.server.push(f"p{name}", prefix).status_code in (200, 201)
                moved = client.put(
                    f"/v1/prefixes/p{name}/aliases/stable", json={"version": prefix.digest}
                )
                assert moved.status_code == 200, moved.text
                self.changes += 1

    def run(self) -> None:
        """Readers and the writer together, until the readers have had enough."""
        with ThreadPoolExecutor(NAMES + 1) as pool:
            writer = pool.submit(self.write)
            readers = [pool.submit(self.read, name) for name in range(NAMES)]
            try:
                for reader in readers:
                    reader.result(250)
            finally:
                self.done.set()
            writer.result(30)


def upload_first_versions(server: RunningServer, versions: list[list[Version]]) -> None:
    for name, row in enumerate(versions):
        first = server.push(f"p{name}", row[0].prefix, **{"x-alias": "stable"})
        assert first.status_code == 201, first.text


def test_every_reply_is_that_of_the_version_it_names_while_everything_changes(
    tiny_gpt2: FrozenModel, versions: list[list[Version]], tmp_path: Path
) -> None:
    with serving(tiny_gpt2, tmp_path, device_cache=1, host_cache=1, max_rows=24) as server:
        upload_first_versions(server, versions)
        clients = Clients(server, versions)
        clients.run()
        stats: dict[str, TierStats] = server.services.prefix_cache.stats()  # type: ignore[assignment]
    seen = clients.seen
    assert seen.wrong == []
    assert sum(seen.versions.values()) >= NAMES * REQUESTS
    assert len(seen.versions) > NAMES
    assert clients.changes >= CHANGES
    assert seen.tiers["store"] > NAMES
    assert stats["device"].evictions > 0
    assert stats["host"].evictions > 0
