"""A client for the prefix routes of a running server; refusals become `ServerError`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from app.errors import PolyprefixError

PAGE_ITEMS = 100
CHUNK_BYTES = 256 * 1024
TIMEOUT = httpx.Timeout(60.0, connect=5.0)

Json = dict[str, Any]
Advance = Callable[[int], None]
"""Called with the number of bytes of each chunk that was transferred."""


class ServerError(PolyprefixError):
    """The server's error, or that no server answered; `status` 0 means no reply."""

    def __init__(self, message: str, *, status: int = 0, code: str = "no_reply") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Client:
    """Talks to the server at `server` (a URL) with the API key `key`, if one is needed."""

    def __init__(
        self, server: str, key: str | None = None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        if key and not (key.isascii() and key.isprintable()):
            # httpx's own error would repeat the key
            raise ServerError(
                "the API key contains a character that no key has; check POLYPREFIX_API_KEY",
                code="invalid_key",
            )
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._server = server
        try:
            self._http = httpx.Client(
                base_url=server, headers=headers, timeout=TIMEOUT, transport=transport
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ServerError(f"--server: {server!r} is not a URL: {error}") from error

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def push(self, file: Path, name: str, *, alias: str | None, advance: Advance) -> Json:
        """Upload `file` as a version of `name`; `created` is False if the version existed."""
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(file.stat().st_size),
        }
        if alias:
            headers["x-alias"] = alias
        with self._reply(
            "POST", _path(name, "versions"), content=_chunks(file, advance), headers=headers
        ) as reply:
            return {**_json(reply), "created": reply.status_code == 201}

    def info(self) -> Json:
        """The server's base model: shapes, family, fingerprint, limits."""
        return self._get("/info")

    def list_prefixes(self) -> list[Json]:
        return self._pages("/v1/prefixes")

    def get_prefix(self, name: str) -> Json:
        """One prefix with `versions_data`, all its versions from newest to oldest."""
        prefix = self._get(_path(name))
        return {**prefix, "versions_data": self._pages(_path(name, "versions"))}

    def digest(self, name: str, selector: str) -> str:
        """The full digest of an alias or of a unique digest prefix."""
        aliases = self._get(_path(name))["aliases"]
        if selector in aliases:
            return str(aliases[selector])
        return str(self._get(_path(name, "versions", selector))["digest"])

    def pull(self, name: str, digest: str, target: Path, *, advance: Advance) -> int:
        """Download a version's file to `target`, completely or not at all; returns its size."""
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with (
                os.fdopen(handle, "wb") as file,
                self._reply("GET", _path(name, "versions", digest, "content")) as reply,
            ):
                for chunk in reply.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
                    advance(len(chunk))
                size = file.tell()
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return size

    def delete(self, name: str, digest: str | None) -> None:
        path = _path(name, "versions", digest) if digest else _path(name)
        with self._reply("DELETE", path):
            pass

    def get_alias(self, name: str, alias: str) -> Json:
        return self._get(_path(name, "aliases", alias))

    def set_alias(self, name: str, alias: str, version: str) -> Json:
        with self._reply("PUT", _path(name, "aliases", alias), json={"version": version}) as reply:
            return _json(reply)

    def rollback_alias(self, name: str, alias: str) -> Json:
        with self._reply("POST", _path(name, "aliases", alias, "rollback")) as reply:
            return _json(reply)

    def _pages(self, path: str) -> list[Json]:
        items: list[Json] = []
        query: Json = {"limit": PAGE_ITEMS}
        while True:
            page = self._get(path, params=query)
            items += page["data"]
            if not page.get("next_cursor"):
                return items
            query["cursor"] = page["next_cursor"]

    def _get(self, path: str, **options: Any) -> Json:
        with self._reply("GET", path, **options) as reply:
            return _json(reply)

    @contextmanager
    def _reply(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """A successful reply, not read yet; everything else is a ServerError."""
        try:
            with self._http.stream(method, path, **options) as reply:
                if not reply.is_success:
                    reply.read()
                    raise _error(reply)
                yield reply
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            raise ServerError(
                f"no server answers at {self._server} ({error}). Start one with"
                " `polyprefix serve`, or name another with --server."
            ) from error
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise ServerError(
                f"the connection to {self._server} broke: {error or type(error).__name__}"
            ) from error


def _path(name: str, *rest: str) -> str:
    return "/".join(["/v1/prefixes", *(quote(part, safe="") for part in (name, *rest))])


def _chunks(file: Path, advance: Advance) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
            advance(len(chunk))


def _json(reply: httpx.Response) -> Json:
    reply.read()
    try:
        body = reply.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ServerError(
            f"the server's reply to {reply.request.url} is not a JSON object",
            status=reply.status_code,
            code="invalid_reply",
        )
    return body


def _error(reply: httpx.Response) -> ServerError:
    try:
        error = reply.json()["error"]
        return ServerError(
            str(error["message"]), status=reply.status_code, code=str(error.get("code"))
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return ServerError(
            f"{reply.request.url} answered {reply.status_code} {reply.reason_phrase}",
            status=reply.status_code,
            code="http_error",
        )
