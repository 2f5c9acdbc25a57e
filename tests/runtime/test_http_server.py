"""The order of a start and of a shutdown, by real signals; and what may be listened to."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import httpx
import pytest
from pydantic import ValidationError

from app.errors import PolyprefixError
from app.runtime.http_server import bind
from app.settings import Settings

SERVE = textwrap.dedent(
    """
    import asyncio, contextlib, sys
    from app.runtime.http_server import Server, bind, configuration
    from app.errors import PolyprefixError

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["state"]["word"]})

    @contextlib.asynccontextmanager
    async def lifespan():
        if "unsupported" in sys.argv:
            raise PolyprefixError("this cannot be served")
        yield {"word": b"served"}
        print("released", flush=True)

    async def drain():
        print("draining", flush=True)
        if "stuck" in sys.argv:
            await asyncio.Event().wait()
        await asyncio.to_thread(sys.stdin.readline)

    def ready():
        print(door.getsockname()[1], flush=True)

    door = bind("127.0.0.1", 0)
    try:
        Server(configuration(app), lifespan=lifespan(), ready=ready, drain=drain).run([door])
        print("left", flush=True)
    except PolyprefixError as error:
        print(error, flush=True)
    """
)


def start(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_with_the_door_open_then_exits_with_zero(name: signal.Signals) -> None:
    process, port = start()
    with process:
        assert process.stdin
        assert process.stdout
        process.send_signal(name)
        assert process.stdout.readline() == "draining\n"
        assert httpx.get(f"http://127.0.0.1:{port}").text == "served"
        process.stdin.write("done\n")
        process.stdin.flush()
        assert process.stdout.read() == "released\nleft\n"
    assert process.returncode == 0


def test_a_second_signal_ends_a_drain_that_hangs() -> None:
    process, _ = start("stuck")
    with process:
        assert process.stdout
        process.terminate()
        assert process.stdout.readline() == "draining\n"
        process.terminate()
        assert process.stdout.read() == "released\nleft\n"
    assert process.returncode == 0


def test_what_the_start_raises_ends_the_run() -> None:
    process = subprocess.run(
        [sys.executable, "-c", SERVE, "unsupported"], capture_output=True, text=True, check=True
    )
    assert process.stdout == "this cannot be served\n"
    assert process.stderr == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_told_before_anything_is_loaded(host: str) -> None:
    with bind(host, 0) as taken:
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(PolyprefixError, match=f"{host} port {port}: Address already in use"):
            bind(host, port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PolyprefixError, match="cannot listen on 192.0.2.1 port 0"):
        bind("192.0.2.1", 0)


@pytest.mark.parametrize("wrong", ["*", "localhost", "10.0.0.1/8", "10.0.0.0/8, haproxy"])
def test_a_trusted_proxy_that_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings(trusted_proxies=wrong)
