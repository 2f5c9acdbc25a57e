"""What is secret about a key is in one reply and nowhere else: not in logs, errors or metrics."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import httpx
import pytest

from app.cli.logs import configure_logging
from app.model.frozen import FrozenModel
from tests.api.guarded import IDENTITIES, PEPPER, Guarded, guarding
from tests.tiny import random_prefix

PATHS = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/nothing", None),
    ("GET", "/v1/prefixes/mine", None),
    ("GET", "/v1/prefixes?limit=x", None),
    ("GET", "/metrics", None),
    ("GET", "/admin/tenants/acme/keys", None),
    ("GET", "/admin/tenants/nobody", None),
    ("GET", "/nothing", None),
    ("POST", "/v1/completions", {"model": "mine", "prompt": "x", "max_tokens": 1}),
    ("POST", "/v1/completions", {"prompt": 5}),
    ("POST", "/generate", {"inputs": "x", "parameters": {"adapter_id": "?"}}),
    ("POST", "/v1/prefixes/mine/versions", {}),
    ("PATCH", "/admin/tenants/acme", {"limits": {"max_rows": -1}}),
    ("DELETE", "/v1/prefixes/nothing", None),
]


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("secrets")) as guarded:
        guarded.push("mine", random_prefix(tiny_gpt2, 3), guarded.key())
        yield guarded


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        for name in ("app", "uvicorn", "sqlalchemy.engine", "asyncio"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        yield caplog
    for name in ("app", "uvicorn", "sqlalchemy.engine", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_no_part_of_a_secret_is_ever_said(
    guarded: Guarded, everything_logged: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(5)
    presented = {name: guarded.headers(name) for name in IDENTITIES}
    secrets = {
        headers["authorization"].removeprefix("Bearer ").split("_")[2]
        for headers in presented.values()
        if "pfx_" in headers.get("authorization", "")
    }
    assert len(secrets) >= 8
    said = []
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        for _ in range(600):
            method, path, body = dice.choice(PATHS)
            reply = client.request(
                method, path, json=body, headers=presented[dice.choice(IDENTITIES)]
            )
            assert reply.status_code < 500, (method, path, reply.text)
            said.append(f"{reply.headers} {reply.text}")
        said.append(client.get("/metrics", headers=presented["valid"]).text)
    said.append(everything_logged.text)
    whole = "\n".join(said)
    for secret in (*secrets, PEPPER):
        assert secret not in whole
    assert "Traceback" not in whole
    assert 'File "' not in whole


def test_nothing_of_it_is_on_disk_either(guarded: Guarded) -> None:
    secret = guarded.key().split("_")[2].encode()
    files = [path for path in guarded.server.root.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert secret not in content, path
        assert PEPPER.encode() not in content, path


def test_a_key_that_a_client_puts_elsewhere_is_struck_out_of_logs(
    guarded: Guarded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the handlers of the tests themselves are not to be closed
    monkeypatch.setattr(logging, "_handlerList", [])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("info")
        logging.getLogger("app.test").warning("at %s: %s", "/v1", f"x{guarded.key()}y")
        try:
            raise ValueError(guarded.key())
        except ValueError:
            logging.getLogger("app.test").exception("failed")
        shown = capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    kid, secret = guarded.key().split("_")[1:3]
    assert secret not in shown
    assert shown.count(f"pfx_{kid}_…") >= 2


def test_a_key_that_a_client_puts_elsewhere_is_not_repeated(guarded: Guarded) -> None:
    key = guarded.key()
    kid, secret = key.split("_")[1:3]
    with guarded.client(key) as client:
        replies = [
            client.get(f"/admin/tenants/acme/keys/{key}"),
            client.delete(f"/admin/tenants/acme/keys/key:{key}"),
            client.post("/admin/tenants", json={"id": "other", "limits": {key: 1}}),
            client.put("/v1/prefixes/mine/aliases/x", json={"split": {key: 1, "abcdef": 1}}),
            client.post("/admin/tenants/acme/keys", json={"label": f"for {key}"}),
            client.post("/generate", json={"inputs": "x", "parameters": {"adapter_id": key}}),
        ]
        records, query = "", {"limit": "100"}
        while query:
            page = client.get("/admin/audit", params=query)
            records, cursor = records + page.text, page.json()["next_cursor"]
            query = {"limit": "100", "cursor": cursor} if cursor else {}
    assert all(400 <= reply.status_code < 500 for reply in replies)
    for said in (*(reply.text for reply in replies), records):
        assert secret[:6] not in said
    assert f"pfx_{kid}_…" in replies[0].text
