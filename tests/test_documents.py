"""The comparison of printed replies with real ones finds what is printed wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.documents import Block, Example, differences

REAL = {"object": "list", "data": [{"name": "e2e", "at": 7}, {"name": "tone", "at": None}]}


def found(printed: Any, real: Any) -> list[str]:
    block = Block("json", json.dumps(printed), "page.md", 1)
    return differences(block, json.dumps(real))


@pytest.mark.parametrize(
    "printed",
    [
        REAL,
        {"object": "list", "data": [{"name": "e2e", "at": 8}, {"name": "tone", "at": None}]},
        {"object": "list", "data": [{"name": "tone", "at": None}, {"name": "e2e", "at": 1}]},
        {"object": "list", "…": "…"},
        {"object": "…", "data": [{"…": "…"}, "…"]},
    ],
)
def test_a_reply_of_the_same_shape_is_as_printed(printed: Any) -> None:
    assert found(printed, REAL) == []


@pytest.mark.parametrize(
    ("printed", "problem"),
    [
        ({"object": "page", "data": REAL["data"]}, "printed as 'page'"),
        ({"data": REAL["data"]}, "differ in object"),
        ({**REAL, "cursor": None}, "differ in cursor"),
        ({**REAL, "data": []}, "printed with 0 items"),
        ({**REAL, "data": REAL["data"][:1]}, "no item is printed that looks like"),
        ({**REAL, "data": [*REAL["data"], {"name": "gone", "at": 7}]}, "printed as 'gone'"),
        ({**REAL, "data": [{"name": "e2e", "at": "7"}, "…"]}, "printed as text"),
    ],
)
def test_a_reply_of_another_shape_is_found(printed: Any, problem: str) -> None:
    assert any(problem in each for each in found(printed, REAL))


def test_events_are_compared_one_by_one() -> None:
    real = 'data: {"text":"a","usage":null}\n\ndata: {"text":"b","usage":null}\n\ndata: [DONE]\n\n'
    printed = 'data: {"text":"x","usage":null}\n\ndata: [DONE]\n'
    assert differences(Block("text", printed, "page.md", 1), real) == []
    assert differences(Block("text", printed.replace("[DONE]", '{"text":""}'), "", 1), real)
    assert differences(Block("text", printed.replace("null", "1"), "page.md", 1), real)


def test_requests_of_a_command_are_read() -> None:
    text = (
        "curl -o file http://127.0.0.1:8000/v1/prefixes?limit=2\n"
        'curl http://127.0.0.1:8000/generate \\\n  --json \'{\n  "inputs": "a"\n}\' | tee reply\n'
        "curl -X DELETE http://127.0.0.1:8000/v1/prefixes/e2e\n"
    )
    assert list(Example(Block("bash", text, "page.md", 1), None).requests()) == [
        ("GET", "/v1/prefixes"),
        ("POST", "/generate"),
        ("DELETE", "/v1/prefixes/e2e"),
    ]
