"""Files for training, by the official client: what it sends and asks, and hostile content."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tests.api.routes.training.conftest import EXAMPLES, lines
from tests.server import RunningServer

FINE = lines(*EXAMPLES)


def test_a_file_is_uploaded_shown_read_and_deleted(client: openai.OpenAI) -> None:
    made = client.files.create(file=("my data.jsonl", FINE), purpose="fine-tune")
    assert made.id.startswith("file-")
    assert (made.object, made.bytes, made.filename) == ("file", len(FINE), "my data.jsonl")
    assert (made.purpose, made.status) == ("fine-tune", "processed")
    assert made.expires_at is None
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == FINE
    gone = client.files.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(made.id)
    assert caught.value.code == "not_found"


def test_files_are_listed_page_by_page(client: openai.OpenAI, uploaded: Callable[..., str]) -> None:
    made = [uploaded() for _ in range(5)]
    found = [file.id for file in client.files.list(limit=2)]  # the client asks for every page
    assert found[:5] == made[::-1]
    first = client.files.list(limit=2, order="asc")
    assert len(first.data) == 2
    assert first.has_more
    after = client.files.list(after=made[2], limit=100).data
    assert [file.id for file in after][:2] == [made[1], made[0]]


def test_files_are_listed_by_purpose(client: openai.OpenAI, uploaded: Callable[..., str]) -> None:
    text = uploaded(b"A text.", "text.txt", purpose="user_data")
    assert text in {file.id for file in client.files.list(purpose="user_data")}
    assert text not in {file.id for file in client.files.list(purpose="fine-tune")}


def test_files_are_listed_by_user_page_by_page(
    client: openai.OpenAI, uploaded: Callable[..., str]
) -> None:
    made = {
        user: [uploaded(extra_body={"user": user}) for _ in range(3)] for user in ("kim", "lee")
    }
    text = uploaded(b"A text.", "text.txt", purpose="user_data", extra_body={"user": "kim"})
    kims = {"user": "kim"}
    found = [file.id for file in client.files.list(limit=2, extra_query=kims)]
    assert found == [text, *made["kim"][::-1]]
    oldest = client.files.list(limit=2, order="asc", purpose="fine-tune", extra_query=kims)
    assert [file.id for file in oldest] == made["kim"]
    # the last file that was seen may be anybody's
    after = client.files.list(after=made["lee"][0], extra_query=kims)
    assert [file.id for file in after] == made["kim"][::-1]
    assert client.files.list(extra_query={"user": "nobody"}).data == []


@pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs"])
@pytest.mark.parametrize("user", ["", "x" * 513])
def test_a_user_who_cannot_be_is_refused_as_the_list_of_prefixes_does(
    trained: RunningServer, path: str, user: str
) -> None:
    with trained.client() as client:
        reply = client.get(path, params={"user": user})
        prefixes = client.get("/v1/prefixes", params={"user": user})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "user")
    assert reply.json()["error"]["message"] == prefixes.json()["error"]["message"]


def test_a_file_may_say_whose_it_is_and_when_it_expires(client: openai.OpenAI) -> None:
    made = client.files.create(
        file=("a.jsonl", FINE),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
        extra_body={"user": "Zoë"},
    )
    assert made.expires_at == made.created_at + 3600
    assert made.user == "Zoë"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "records",
    [
        [{"input": "a", "target": "b"}],
        [{"input": "a", "targets": ["b", "c"]}],
        [{"prompt": "a", "completion": " b"}],
        [{"input": "a", "target": "b", "category": {"deep": [1, 2]}}],
    ],
)
def test_every_form_of_examples_is_taken(client: openai.OpenAI, records: list[Any]) -> None:
    made = client.files.create(file=("a.jsonl", lines(*records)), purpose="fine-tune")
    assert made.examples == len(records)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "data",
    [
        "\ufeff".encode() + FINE,
        FINE.replace(b"\n", b"\r\n"),
        FINE.rstrip(b"\n"),
        b"\n\n" + FINE + b"\n  \n",
    ],
    ids=["bom", "crlf", "no last newline", "blank lines"],
)
def test_what_editors_make_of_a_file_is_taken(client: openai.OpenAI, data: bytes) -> None:
    made = client.files.create(file=("a.jsonl", data), purpose="fine-tune")
    assert made.examples == len(EXAMPLES)  # type: ignore[attr-defined]
    assert client.files.content(made.id).read() == data


@pytest.mark.parametrize(
    ("bad", "wrong"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"input": "a"}', "give `target`"),
        (b'{"input": "a", "target": ""}', "`target`: every target must be a text"),
        (b'{"input": "a", "targets": []}', "`targets` must be a list of 1 to"),
        (b'{"input": "a", "target": "b", "targets": ["c"]}', "not both"),
        (b'{"input": " ", "target": "b"}', "`input` must be a text that is not empty"),
        (b'{"input": 5, "target": "b"}', "`input` must be a text"),
        (b'{"prompt": "a"}', "give `target`"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "chats are not taken"),
        (b'{"input": "a\\u0000", "target": "b"}', "NUL"),
        (b'{"input": "\\ud800", "target": "b"}', "lone surrogate"),
        (b'{"input": "\xff", "target": "b"}', "not UTF-8 at byte 12 of the line"),
        (b'{"input": "a", "target": "b", "x": ' + b"[" * 30 + b"]" * 30 + b"}", "too deeply"),
        (b'{"input": "a", "target": "b", "x": ' + b"[" * 9999 + b"}", "too deeply"),
        (b'{"input": "a", "target": "b", "x": NaN}', "NaN"),
        (b'{"input": "a", "input": "b", "target": "c"}', "twice"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(client: openai.OpenAI, bad: bytes, wrong: str) -> None:
    before = len(client.files.list(limit=1000).data)
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("my.jsonl", FINE + bad + b"\n"), purpose="fine-tune")
    assert f"my.jsonl:{len(EXAMPLES) + 1}: " in caught.value.message
    assert wrong in caught.value.message
    assert caught.value.param == "file"
    assert len(client.files.list(limit=1000).data) == before


@pytest.mark.parametrize("data", [b"", b"\n\n \n", "\ufeff".encode()])
def test_a_file_without_examples_is_refused(client: openai.OpenAI, data: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="no example"):
        client.files.create(file=("a.jsonl", data), purpose="fine-tune")


def test_a_line_that_is_too_long_is_refused_and_a_file_too(client: openai.OpenAI) -> None:
    long = lines({"input": "a" * 1_100_000, "target": "b"})
    with pytest.raises(openai.BadRequestError, match="a.jsonl:1: the line is longer than 1048576"):
        client.files.create(file=("a.jsonl", long), purpose="fine-tune")
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=("a.jsonl", FINE * 20_000), purpose="fine-tune")
    assert caught.value.status_code == 413  # the server's limit is 2 MiB here
    assert caught.value.body["code"] == "file_too_large"  # type: ignore[index]


def test_a_text_is_kept_for_distillation(client: openai.OpenAI) -> None:
    text = b"Blue Spice is a pub.\nIt is cheap.\n"
    made = client.files.create(file=("facts.txt", text), purpose="user_data")
    assert client.files.content(made.id).read() == text
    for bad in (b"", b"  \n", b"a\0b", b"\xff\xfe"):
        with pytest.raises(openai.BadRequestError):
            client.files.create(file=("facts.txt", bad), purpose="user_data")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "batch"}, "purpose"),
        ({"purpose": "fine-tune", "user": ""}, "user"),
        ({"purpose": "fine-tune", "user": "x" * 600}, "user"),
        ({"purpose": "fine-tune", "colour": "red"}, "colour"),
        ({"purpose": "fine-tune", "expires_after[anchor]": "created_at"}, "expires_after"),
        (
            {
                "purpose": "fine-tune",
                "expires_after[anchor]": "created_at",
                "expires_after[seconds]": "-5",
            },
            "expires_after",
        ),
    ],
)
def test_wrong_fields_of_the_form_are_named(
    trained: RunningServer, fields: dict[str, str], param: str
) -> None:
    with trained.client() as client:
        reply = client.post("/v1/files", data=fields, files={"file": ("a.jsonl", FINE)})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_what_is_no_form_is_refused(trained: RunningServer) -> None:
    with trained.client() as client:
        reply = client.post("/v1/files", json={"purpose": "fine-tune"})
        assert reply.status_code == 415
        assert "multipart/form-data" in reply.json()["error"]["message"]


def test_a_client_that_leaves_in_the_middle_leaves_nothing(trained: RunningServer) -> None:
    def cut() -> Any:
        yield b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield FINE
        raise ConnectionError

    kind = {"content-type": "multipart/form-data; boundary=XX"}
    with trained.client() as client, pytest.raises(ConnectionError):
        client.post("/v1/files", content=cut(), headers=kind)
    with trained.client() as client:
        assert client.get("/v1/files").status_code == 200
    _wait_for_none(trained)


def _wait_for_none(server: RunningServer) -> None:
    """Until no upload is in transit."""
    folder = server.root / "store" / ".staging"
    with httpx.Client() as client:
        for _ in range(200):
            if not list(folder.glob("*")):
                return
            client.get(f"{server.url}/health/live")
    raise AssertionError(list(folder.glob("*")))


def test_a_file_in_use_is_kept(
    client: openai.OpenAI, uploaded: Callable[..., str], base: str
) -> None:
    file = uploaded()
    job = client.fine_tuning.jobs.create(model=base, training_file=file)
    with pytest.raises(openai.ConflictError) as caught:
        client.files.delete(file)
    assert caught.value.code == "in_use"
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file).deleted


@pytest.mark.parametrize("file_id", ["file-" + "0" * 24, "nonsense", "file-%00"])
def test_a_file_that_is_not_there_is_not_found(client: openai.OpenAI, file_id: str) -> None:
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(file_id)


def test_what_is_no_id_of_a_file_is_told_in_words(client: openai.OpenAI) -> None:
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask("nonsense")
        assert caught.value.param == "file_id"
        assert "file_id: 'nonsense' is not the id of a file; ids look like file-3c1f" in (
            caught.value.message
        )
        assert "; list them with GET /v1/files" in caught.value.message
    with pytest.raises(openai.NotFoundError, match="after: 'ftjob-1' is not the id of a file"):
        client.files.list(after="ftjob-1")


def test_records_are_json_that_the_client_made(client: openai.OpenAI) -> None:
    data = json.dumps({"input": "naïve “quotes” 日本", "target": "x"}, ensure_ascii=False).encode()
    made = client.files.create(file=("a.jsonl", data), purpose="fine-tune")
    assert client.files.content(made.id).read() == data
