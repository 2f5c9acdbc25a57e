"""The project's Markdown pages: their fenced blocks, and how a reply differs from a printed one."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "app/README.md",
        "app/CHANGELOG.md",
        "app/api/README.md",
        "app/api/routes/training/README.md",
        "app/jobs/README.md",
        "app/training/README.md",
        "app/evaluation/README.md",
        "app/bench/README.md",
        "docker/README.md",
        "prefixes/README.md",
    )
}
SERVER = "http://127.0.0.1:8000"
"""Where the pages say that the server is."""

_SAME_VALUES = frozenset(
    {
        *(
            "object",
            "name",
            "alias",
            "version",
            "versions",
            "aliases",
            "digest",
            "split",
            "deleted",
        ),
        *("a", "b", "metric", "num_examples", "everyone", "tenants", "tenant", "pinned", "status"),
        *("code", "type", "param", "error_type", "model", "owned_by", "label", "scopes", "limits"),
        *("disabled", "family", "modules", "reason", "prefix", "links"),
    }
)
"""Fields whose values are printed as every server gives them; of others only the types are."""

_MAPS = frozenset({"aliases", "split", "limits", "modules", "links"})
"""Of these, objects whose fields are data: their values are printed as they are, too."""

_DATA_AS_KEYS = frozenset({"preparation", "top_logprobs"})
"""Objects whose keys differ from machine to machine, or with the text."""

_MORE = "…"
"""As a field or an item: the page leaves some out. As a text: any text."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; `line` is the line of its fence."""

    language: str
    text: str
    page: str
    line: int

    @property
    def place(self) -> str:
        """Where it is, as compilers print places."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Example:
    """A block with `curl` commands, and the block after it if that prints the reply."""

    command: Block
    reply: Block | None

    def requests(self) -> Iterator[tuple[str, str]]:
        """Method and path of each request to the server, without the query."""
        text = self.command.text.replace("\\\n", " ")
        for line in re.split(r"^(?=curl )", text, flags=re.MULTILINE):
            if line.startswith("curl "):
                yield _request(shlex.split(line))


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page in order: all, or those of one language."""
    source = PAGES[page]
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", source, re.DOTALL | re.MULTILINE)
    return [
        Block(match[1], match[2], page, source.count("\n", 0, match.start()) + 1)
        for match in found
        if language in (None, match[1])
    ]


def examples(page: str) -> list[Example]:
    """The blocks of a page that send requests with `curl`, with their replies."""
    found = blocks(page)
    return [
        Example(block, after if after and after.language in ("json", "http", "text") else None)
        for block, after in zip(found, [*found[1:], None], strict=True)
        if block.language == "bash" and re.search(r"^curl ", block.text, re.MULTILINE)
    ]


def section(page: str, title: str) -> str:
    """The text under a heading of the second level."""
    found = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGES[page], re.DOTALL | re.MULTILINE
    )
    assert found, f"{page} has no section {title!r}"
    return found[1]


def differences(printed: Block, real: str) -> list[str]:
    """What is wrong with a printed reply: fields, types, values that every server has."""
    if printed.language == "http":
        return _missing_lines(printed.text, real.lower())
    if printed.language == "json":
        return list(_differences(json.loads(printed.text), json.loads(real), "reply"))
    if printed.text.startswith("data:"):
        return _event_differences(printed.text, real)
    return _missing_lines(printed.text, real)


def _request(words: list[str]) -> tuple[str, str]:
    """What a `curl` command asks for."""
    url = next(word for word in words if word.startswith(SERVER))
    sends = any(word in ("-d", "-F", "--json", "--data-binary") for word in words)
    method = words[words.index("-X") + 1] if "-X" in words else "POST" if sends else "GET"
    return method, urlsplit(url).path or "/"


def _missing_lines(printed: str, real: str) -> list[str]:
    """Lines whose first word is nowhere in the reply."""
    starts = [line.split()[0] for line in printed.lower().splitlines() if line.strip()]
    return [f"no line begins with {start!r}" for start in starts if start not in real.lower()]


def _event_differences(printed: str, real: str) -> list[str]:
    """Each event has the shape of one that is printed, and the last ones are alike."""
    shown, sent = (
        [line.removeprefix("data:").strip() for line in text.splitlines() if line.strip()]
        for text in (printed, real)
    )
    if (shown[-1] == "[DONE]") != (sent[-1] == "[DONE]"):
        return [f"the last event is {sent[-1]!r}"]
    parsed = [
        [json.loads(event) for event in events if event != "[DONE]"] for events in (shown, sent)
    ]
    return list(_differences(*parsed, "events"))


def _differences(printed: Any, real: Any, where: str, field: str = "") -> Iterator[str]:
    if isinstance(printed, dict) and isinstance(real, dict):
        shown = printed.keys() - {_MORE}
        odd = shown - real.keys() if _MORE in printed else shown ^ real.keys()
        if odd and field not in _DATA_AS_KEYS:
            yield f"{where}: printed and real fields differ in {', '.join(sorted(odd))}"
        for name in printed.keys() & real.keys():
            inner = field if field in _MAPS else name
            yield from _differences(printed[name], real[name], f"{where}.{name}", inner)
    elif isinstance(printed, list) and isinstance(real, list):
        yield from _list_differences(printed, real, where, field)
    elif printed == _MORE and isinstance(real, str):
        return
    elif _kind(printed) != _kind(real):
        yield f"{where}: printed as {_kind(printed)}, and is {real!r}"
    elif field in _SAME_VALUES and printed != real:
        yield f"{where}: printed as {printed!r}, and is {real!r}"


def _list_differences(printed: list[Any], real: list[Any], where: str, field: str) -> Iterator[str]:
    """Every printed item is there, and every item that is there has the shape of a printed one."""
    printed = [item for item in printed if item != _MORE]
    if bool(printed) != bool(real):
        yield f"{where}: printed with {len(printed)} items, and has {len(real)}"
        return
    for at, item in enumerate(printed):
        if not any(_fits(item, each, field) for each in real):
            yield from _differences(item, real[min(at, len(real) - 1)], f"{where}[{at}]", field)
    for at, each in enumerate(real):
        if not any(_fits(_shape(item), _shape(each), "") for item in printed):
            yield f"{where}[{at}]: no item is printed that looks like {each!r}"


def _fits(printed: Any, real: Any, field: str) -> bool:
    return not list(_differences(printed, real, "", field))


def _shape(value: Any) -> Any:
    """The value with nothing left of it but fields and types."""
    if isinstance(value, dict):
        return {name: _MORE if name == _MORE else _shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return {"text": "", "number": 0, "switch": True, "null": None}[_kind(value)]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "switch"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else type(value).__name__
