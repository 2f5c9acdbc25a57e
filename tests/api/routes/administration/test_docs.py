"""`GET /docs`: a page that loads nothing from elsewhere and shows nothing by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from app.model.frozen import FrozenModel
from tests.api.guarded import guarding


@pytest.fixture(scope="module")
def client(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Somebody without a key."""
    with (
        guarding(tiny_gpt2, tmp_path_factory.mktemp("docs")) as guarded,
        guarded.client() as client,
    ):
        yield client


def linked(page: str) -> list[str]:
    """What the page loads: its scripts and styles."""
    return re.findall(r'<(?:script|link)[^>]* (?:src|href)="([^"]+)"', page)


def test_the_page_and_all_that_it_loads_are_open(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    types = {
        url: client.get(f"/{url}").raise_for_status().headers["content-type"].partition(";")[0]
        for url in linked(page.text)
        if url != "data:,"
    }
    assert types == {
        "docs/swagger-ui.css": "text/css",
        "docs/page.css": "text/css",
        "docs/swagger-ui-bundle.js": "text/javascript",
        "docs/page.js": "text/javascript",
    }


def test_the_page_has_no_inline_scripts_or_styles_and_may_not_load_any(
    client: httpx.Client,
) -> None:
    page = client.get("/docs")
    assert not re.findall(r"<style|<script>|\son\w+=|\sstyle=|https?:|//", page.text)
    policy = dict(
        part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    for url in ("/docs", "/docs/page.js", "/docs/swagger-ui-bundle.js"):
        assert client.get(url).headers["x-content-type-options"] == "nosniff"


def test_the_page_shows_nothing_without_a_key(client: httpx.Client) -> None:
    assert client.get("/openapi.json").status_code == 401
    assert "/v1/completions" not in client.get("/docs").text + client.get("/docs/page.js").text


@pytest.mark.parametrize("path", ["/docs/", "/docs/x", "/docs/../metrics", "/docs/page.js/"])
def test_nothing_else_below_it_is_open(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 401
