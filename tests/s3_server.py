"""A private S3 server for tests, which they may freeze, kill and start again; and a faulty proxy.

The server is moto's, in a process of its own. What it lacks of a real store: it keeps everything in
memory (a killed one has lost its buckets), checks no signatures, checksums or permissions, never
asks to slow down, and sorts what it lists by name as S3 does but other stores may not. It has:
conditional puts, multipart uploads with parts of 5 MiB at least, pages of 1,000 names, times in
whole seconds, and the refusal to copy an object onto itself. Faults come from the proxy; the
server's clock can be moved.
"""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_START_S = 60.0
_SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host"
_LAUNCH = """
import datetime, pathlib, sys
import moto.s3.models as models
from moto.server import main
now, clock = models.utcnow, pathlib.Path(sys.argv[2])
models.utcnow = lambda: now() + datetime.timedelta(seconds=float(clock.read_text()))
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


class S3Server:
    """moto's server on a free port of the loopback interface."""

    def __init__(self, folder: Path) -> None:
        """`folder` is for its log and its clock."""
        self._log = folder / "s3.log"
        self._clock = folder / "s3.clock"
        self._process: subprocess.Popen[bytes] | None = None
        self.set_clock(0)
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            self.port: int = door.getsockname()[1]

    def set_clock(self, ahead_s: float) -> None:
        """How far the server's clock is ahead of this machine's."""
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(str(ahead_s))
        fresh.replace(self._clock)
        self.ahead_s = ahead_s

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, str(self.port), str(self._clock)],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                self.request("GET", "/")
                return
            time.sleep(0.05)
        raise RuntimeError(f"the S3 server did not start: {self._log.read_text()[-2000:]}")

    def new_bucket(self) -> str:
        """Makes an empty bucket of its own name."""
        name = f"bucket-{secrets.token_hex(8)}"
        self.request("PUT", f"/{name}")
        return name

    def url(self, bucket: str, prefix: str = "", port: int | None = None) -> str:
        """A store in a bucket, as a user writes it; `port` is that of a proxy."""
        endpoint = f"http://127.0.0.1:{port or self.port}"
        return f"s3://{bucket}/{prefix}?endpoint={endpoint}&region=us-east-1"

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The answer to a plain request, past everything that is under test."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            headers = {"content-length": str(len(body)), "authorization": f"{_SIGNED}, Signature=0"}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return content

    def freeze(self) -> None:
        """It keeps its sockets and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kills it, frozen or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the S3 server does not run")
        os.kill(self._process.pid, number)


@dataclass
class Fault:
    """What happens to a request: see `Proxy.fault`.

    An answer of `status` and `code` instead of the server's; or a wait of `delay_s`, or until
    `held` is set, before it is passed on; and of the answer only `cut_at` bytes.
    """

    status: int | None = None
    code: str = "InternalError"
    delay_s: float = 0.0
    held: threading.Event | None = None
    cut_at: int | None = None
    carried_out: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Passes requests on to a server, except for those that `fault` has something for.

    `fault` is given a method and a path and may return a Fault. What was sent is in `requests`.
    """

    def __init__(self, server: S3Server) -> None:
        self.fault: Callable[[str, str], Fault | None] = lambda _method, _path: None
        self.requests: list[tuple[str, str]] = []
        self._listener = _Listener(self, server.port)
        self.port: int = self._listener.server_address[1]
        self._thread = threading.Thread(target=self._listener.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listens no longer."""
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: Proxy, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self.upstream = upstream

    def handle_error(self, *_args: object) -> None:
        """A client that has gone away is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.proxy.requests.append((self.command, self.path))
        fault = self.server.proxy.fault(self.command, self.path) or Fault()
        time.sleep(fault.delay_s)
        if fault.held is not None:
            fault.held.wait(60)
        if fault.status is None:
            status, headers, content = self._upstream(body)
        else:
            status, headers = fault.status, [("content-type", "application/xml")]
            content = f"<Error><Code>{fault.code}</Code></Error>".encode()
        fault.carried_out.set()
        with suppress(OSError):
            self._answer(status, headers, content, fault.cut_at)

    def _upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except OSError:
            return 502, [], b""
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, cut_at: int | None
    ) -> None:
        self.send_response_only(status)
        left_out = {"transfer-encoding", "connection"}
        if self.command != "HEAD":
            left_out.add("content-length")
            self.send_header("content-length", str(len(content)))
        for name, value in headers:
            if name.lower() not in left_out:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut_at])
        if cut_at is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass

    def log_message(self, *_args: object) -> None:
        """Nothing is logged."""
