"""The real application on a real socket, in a thread of the test's process.

Tests reach it over HTTP and may look at its services behind the scenes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import httpx
import uvicorn
from fastapi import FastAPI

from app.main import create_app
from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.prefix.prefix import Prefix
from app.runtime.http_server import bind, configuration
from app.settings import Settings


@dataclass(frozen=True)
class RunningServer:
    """A server that accepts requests at `url`; `loop` is the one that its routes run on."""

    url: str
    app: FastAPI
    loop: asyncio.AbstractEventLoop
    root: Path

    @property
    def services(self) -> SimpleNamespace:
        """What the routes work with, by the names of `State`."""
        return SimpleNamespace(**self.app.state.acquired)

    def client(self) -> httpx.Client:
        """A client with keep-alive, to be closed."""
        return httpx.Client(base_url=self.url, timeout=60)

    def push(self, name: str, prefix: Prefix | bytes, **headers: str) -> httpx.Response:
        """Upload a prefix, or raw bytes, as a version of `name`."""
        body = prefix if isinstance(prefix, bytes) else encode(prefix)
        return httpx.post(
            f"{self.url}/v1/prefixes/{name}/versions",
            content=body,
            headers={"content-type": "application/octet-stream", **headers},
            timeout=60,
        )


@contextmanager
def serving(model: FrozenModel, root: Path, /, **settings: object) -> Iterator[RunningServer]:
    """Serve `model` until the block ends: with an empty store under `root`, unless told another.

    No worker process trains beside it, unless `train` is set.
    """
    places = {"store": root / "store", "data_dir": root / "data", "train": "off"}
    chosen = Settings(**{**places, **settings})
    app = create_app(chosen, model)
    config = configuration(app, chosen.trusted_proxies)
    config.lifespan = "on"
    server = uvicorn.Server(config)
    door = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{door.getsockname()[1]}"
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[door])

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="server under test")
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server under test did not start")
            thread.join(0.01)
        yield RunningServer(url, app, loops[0], root)
    finally:
        server.should_exit = True
        thread.join()
        door.close()
