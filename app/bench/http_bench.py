"""`polyprefix bench http`: the load of `engine` through a server on loopback, streamed.

Server and client are separate processes on the same machine. The result says what share of the
machine the client takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.bench.engine_bench import our_engine
from app.bench.load import Item, Load, random_prefix
from app.bench.measure import Contender, contest, in_own_process, percentile
from app.bench.ours import TokenTimes
from app.bench.settings import BenchSettings
from app.bench.shapes import model_folder
from app.errors import PolyprefixError
from app.model.load import load_model
from app.prefix.codec import encode

_START_TIMEOUT_S = 300.0
_END_OF_HEAD, _END_OF_CHUNKS = b"\r\n\r\n", b"\r\n0\r\n\r\n"
_TOKEN = b'"text":'
_SERVE = """
import sys, torch
from app.cli import main
torch.set_num_threads(int(sys.argv.pop(1)))
main()
"""


@dataclass(frozen=True)
class ClientFigures:
    """The client's measurements of one round; times in seconds."""

    seconds: float
    cpu_seconds: float
    rows: Sequence[TokenTimes]


def run_http(settings: BenchSettings, load: Load) -> dict[str, Any]:
    """Tokens per second over HTTP, its ratio to the engine without HTTP, and latencies."""
    rows = len(load.items)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        engine = our_engine(settings, folder, load, rows)
        bodies = in_own_process(prefix_files, folder, load)
        with served(settings, folder, scratch, rows) as url:
            for index, body in enumerate(bodies):
                push_prefix(url, index, body)
            client = Contender(LoadClient, url, load)
            with contest([engine, client], settings.rounds):
                figures = client.ask(LoadClient.figures)
    tokens_per_s, alone = (load.num_new / one.median_seconds for one in (client, engine))
    return _result(settings, tokens_per_s, alone, figures)


def _result(
    settings: BenchSettings,
    tokens_per_s: float,
    engine_tokens_per_s: float,
    rounds: Sequence[ClientFigures],
) -> dict[str, Any]:
    first = [row.tokens[0] - row.submitted for one in rounds for row in one.rows]
    gaps = [gap for one in rounds for row in one.rows for gap in row.gaps]
    cores = os.cpu_count() or 1
    share = sum(one.cpu_seconds for one in rounds) / sum(one.seconds for one in rounds) / cores
    return {
        "bench": "http",
        "device": settings.device,
        "ours": {
            "tokens_per_s": round(tokens_per_s, 2),
            "first_token_p50_ms": round(1000 * percentile(first, 0.5), 1),
            "first_token_p99_ms": round(1000 * percentile(first, 0.99), 1),
            "inter_token_p50_ms": round(1000 * percentile(gaps, 0.5), 1),
            "inter_token_p99_ms": round(1000 * percentile(gaps, 0.99), 1),
            "client_share_of_machine": round(share, 3),
        },
        "peers": {"engine": {"tokens_per_s": round(engine_tokens_per_s, 2)}},
        "ratio": {"engine": round(tokens_per_s / engine_tokens_per_s, 3)},
    }


def prefix_files(folder: str, load: Load) -> list[bytes]:
    """The load's prefixes as files; runs in its own process."""
    spec = load_model(folder, device="cpu", dtype="float32", packed=False).spec
    return [
        encode(random_prefix(spec, length, seed)) for seed, length in enumerate(load.prefix_lengths)
    ]


@contextmanager
def served(
    settings: BenchSettings, folder: str, scratch: str, rows: int, *, train: str = "off"
) -> Iterator[str]:
    """A `polyprefix serve` process on a free port; yields its URL. `train` is as of `serve`."""
    options = {
        "model": folder,
        "store": f"{scratch}/store",
        "data-dir": f"{scratch}/data",
        "port": "0",
        "device": "cpu",
        "dtype": settings.dtype,
        "max-rows": str(rows),
        "log-level": "warning",
        "train": train,
    }
    command = [sys.executable, "-c", _SERVE, str(settings.threads), "serve"]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _wait_for_url(process)
        finally:
            process.terminate()


def _wait_for_url(process: subprocess.Popen[str]) -> str:
    """Read the URL from the server's greeting."""
    said = ""
    for line in process.stdout or ():
        said += line
        found = re.search(r"polyprefix at (http://[\w.:\[\]]+)", said)
        if found and line.startswith("curl "):
            return found[1]
    raise PolyprefixError(f"the server under load did not start: {said or 'it said nothing'}")


def push_prefix(url: str, index: int, body: bytes) -> None:
    """Upload the load's prefix number `index`."""
    reply = httpx.post(
        f"{url}/v1/prefixes/{_name(index)}/versions",
        content=body,
        headers={"content-type": "application/octet-stream"},
        timeout=_START_TIMEOUT_S,
    )
    reply.raise_for_status()


class LoadClient:
    """Sends the whole load at once over open connections; runs in its own process."""

    def __init__(self, url: str, load: Load) -> None:
        self._url, self._load = url, load
        self._loop = asyncio.Runner()
        self.rounds: list[ClientFigures] = []

    def __call__(self) -> None:
        self.rounds.append(self._loop.run(self._round()))

    def figures(self) -> list[ClientFigures]:
        """Of all rounds but the first."""
        return self.rounds[1:]

    async def _round(self) -> ClientFigures:
        # each round opens new ones: the server closes idle connections while other contenders run
        connections = [await _Connection.open(self._url) for _ in self._load.items]
        requests = [_request(item) for item in self._load.items]
        started, cpu = time.perf_counter(), time.process_time()
        streams = zip(connections, requests, self._load.items, strict=True)
        rows = await asyncio.gather(
            *(connection.complete(request, item.num_new) for connection, request, item in streams)
        )
        figures = ClientFigures(time.perf_counter() - started, time.process_time() - cpu, rows)
        for connection in connections:
            connection.close()
        return figures


class _Connection:
    """A bare HTTP/1.1 connection, so that no client library is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> _Connection:
        """Connect to the server at `url`."""
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    def close(self) -> None:
        self._writer.close()

    async def complete(self, request: bytes, num_new: int) -> TokenTimes:
        """One streamed completion; RuntimeError unless it has all its tokens."""
        times = TokenTimes(time.perf_counter())
        self._writer.write(request)
        head = await self._reader.readuntil(_END_OF_HEAD)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"the server answered {head.splitlines()[0].decode()}")
        tail = b""
        while not tail.endswith(_END_OF_CHUNKS):
            part = await self._reader.read(1 << 16)
            if not part:
                raise RuntimeError("the server closed the connection within a reply")
            seen = tail[1 - len(_TOKEN) :] + part
            times.tokens.extend([time.perf_counter()] * seen.count(_TOKEN))
            tail = (tail + part)[-2000:]
        usage = re.search(rb'"usage":\s*(\{[^{}]*\})', tail)
        made = json.loads(usage[1])["completion_tokens"] if usage else 0
        if made != num_new:
            raise RuntimeError(f"the server made {made} tokens instead of {num_new}")
        return times


def _request(item: Item) -> bytes:
    """The bytes of an HTTP request that streams the item."""
    fields = {
        "model": _name(item.prefix),
        "prompt": list(item.prompt_ids),
        "max_tokens": item.num_new,
        "min_tokens": item.num_new,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _name(index: int) -> str:
    return f"bench-{index}"
