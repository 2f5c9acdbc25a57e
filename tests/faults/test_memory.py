"""A server's memory stays where it is, whatever lengths and kinds of requests it meets."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

TEXT = "name : Blue Spice | eatType : coffee shop | priceRange : cheap | area : city centre"
WORDS = TEXT.split()
MODELS = ("demo-gpt2", "e2e", "astronauts", "airports", "universities")
CLIENTS = 8
LIMIT_S = 3 * 3600
COMMAND = (sys.executable, "-c", "import sys; from app.cli import main; sys.exit(main())", "serve")

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="no list of a process's pages here"
)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """The demo model by the command itself: its URL and its process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [*COMMAND, "--port", "0", "--data-dir", str(folder / "data"), "--log-level", "warning"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            url = next(found[0] for line in lines if (found := re.search(r"http://[\d.:]+", line)))
            yield url, process.pid
        finally:
            process.terminate()


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1000


def body(draw: random.Random) -> dict[str, Any]:
    """A request of one of many kinds."""
    prompt = " ".join(draw.choices(WORDS, k=draw.choice([1, 5, 20, 60]) + draw.randint(0, 9)))
    found = {
        "model": draw.choice(MODELS),
        "prompt": prompt,
        "max_tokens": draw.randint(1, 6),
        "temperature": draw.choice([0, 1]),
        "n": draw.choice([1, 1, 1, 2, 3]),
        "stream": draw.random() < 0.4,
    }
    return found | ({"logprobs": 3} if draw.random() < 0.1 else {})


def send(url: str, count: int, seed: int) -> None:
    """`count` requests by several clients at once; all are answered."""

    def work(client_seed: int) -> None:
        draw = random.Random(client_seed)
        with httpx.Client(base_url=url, timeout=120) as client:
            for _ in range(count // CLIENTS):
                assert client.post("/v1/completions", json=body(draw)).status_code == 200

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(work, range(seed, seed + CLIENTS)))


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_memory_grows_by_20_mb_at_most_between_10_000_and_20_000_requests(tmp_path: Path) -> None:
    with served(tmp_path) as (url, pid):
        seen = []
        for part in range(20):
            send(url, 1000, 100 * part)
            seen.append(resident_mb(pid))
    assert seen[19] - seen[9] <= 20, seen
