"""One running server with a few prefixes for all tests of the HTTP API."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from tests.api.helpers import with_metadata
from tests.server import RunningServer, serving
from tests.tiny import random_prefix


@pytest.fixture(scope="session")
def prefixes(tiny_gpt2: FrozenModel) -> dict[str, Prefix]:
    """What the server has at first: two plain prefixes, and one with a template and defaults."""
    form = with_metadata(
        random_prefix(tiny_gpt2, 4, seed=3),
        input_template=" {input} <|endoftext|>",
        decoding={"max_tokens": 5, "temperature": 0.0, "min_tokens": 5},
    )
    return {
        "tone": random_prefix(tiny_gpt2, 7, seed=1),
        "voice": random_prefix(tiny_gpt2, 3, seed=2, position_offset=0),
        "form": form,
    }


@pytest.fixture(scope="session")
def server(
    tiny_gpt2: FrozenModel,
    prefixes: dict[str, Prefix],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningServer]:
    """A server for tests that leave it as they found it."""
    with serving(tiny_gpt2, tmp_path_factory.mktemp("server"), max_body_kib=64) as running:
        for name, prefix in prefixes.items():
            assert running.push(name, prefix).status_code == 201
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    """A client of the shared server."""
    with server.client() as client:
        yield client


@pytest.fixture
def own_server(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server that a test may ruin."""
    with serving(tiny_gpt2, tmp_path_factory.mktemp("own"), stall_timeout=1) as running:
        yield running


@pytest.fixture(scope="session")
def bart_prefixes(tiny_bart: FrozenModel) -> dict[str, Prefix]:
    """What the BART has: all three modules, one, two of them with a template and beams."""
    form = with_metadata(
        random_prefix(tiny_bart, 3, seed=63, cross=2),
        input_template="<s>say: {input}</s>",
        decoding={"num_beams": 3, "max_tokens": 6, "early_stopping": True},
    )
    return {
        "whole": random_prefix(tiny_bart, 4, seed=61, position_offset=0, encoder=6, cross=3),
        "plain": random_prefix(tiny_bart, 5, seed=62),
        "form": form,
    }


@pytest.fixture(scope="session")
def bart_server(
    tiny_bart: FrozenModel,
    bart_prefixes: dict[str, Prefix],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningServer]:
    """A server whose model has an encoder, for tests that leave it as they found it."""
    with serving(tiny_bart, tmp_path_factory.mktemp("bart")) as running:
        for name, prefix in bart_prefixes.items():
            assert running.push(name, prefix).status_code == 201
        yield running


@pytest.fixture(scope="session")
def bart_client(bart_server: RunningServer) -> Iterator[httpx.Client]:
    """A client of the BART's server."""
    with bart_server.client() as client:
        yield client
