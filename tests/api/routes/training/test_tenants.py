"""Training with keys: scopes, limits, and what is another tenant's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.api.routes.training import files
from app.jobs.checking import CheckedFile, check_file
from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.tenancy.auth.principal import Scope
from tests.api.guarded import EVERYTHING, Guarded, guarding
from tests.api.helpers import until
from tests.tiny import random_prefix

LINES = b'{"input": "a", "target": "b"}\n'


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("training")) as guarded:
        yield guarded


def upload(client: httpx.Client, data: bytes = LINES) -> httpx.Response:
    files = {"file": ("a.jsonl", data)}
    return client.post("/v1/files", data={"purpose": "fine-tune"}, files=files)


def create(client: httpx.Client, model: FrozenModel, file: str, **more: Any) -> httpx.Response:
    body = {"model": model.spec.model_id, "training_file": file, **more}
    return client.post("/v1/fine_tuning/jobs", json=body)


def limited(guarded: Guarded, **limits: int | None) -> None:
    guarded.server.services.tenants.change("acme", limits=limits)
    guarded.server.services.registry.catalog.feed.poll()


def test_a_key_without_the_scope_trains_nothing(guarded: Guarded) -> None:
    with guarded.client(guarded.key(scopes=EVERYTHING - {Scope.TRAIN})) as client:
        assert upload(client).status_code == 403
        assert client.get("/v1/files").status_code == 403


def test_anothers_file_is_as_if_it_were_not_there(guarded: Guarded, tiny_gpt2: FrozenModel) -> None:
    with guarded.client(guarded.key()) as client:
        theirs = upload(client).json()["id"]
    with guarded.client(guarded.key("rival")) as client:
        mine = upload(client).json()["id"]
        missing = "file-" + "0" * 24
        for field in ("training_file", "validation_file"):
            replies = []
            for file in (theirs, missing):
                named = {"file": mine, field: file} if field != "training_file" else {"file": file}
                replies.append(create(client, tiny_gpt2, **named))
            assert [reply.status_code for reply in replies] == [404, 404]
            assert replies[0].json() == replies[1].json()
        listed = client.get(f"/v1/files?after={theirs}"), client.get(f"/v1/files?after={missing}")
        assert listed[0].json() == listed[1].json()


def test_a_tenant_queues_no_more_jobs_than_it_may(guarded: Guarded, tiny_gpt2: FrozenModel) -> None:
    limited(guarded, max_queued_jobs=1)
    with guarded.client(guarded.key()) as client:
        file = upload(client).json()["id"]
        first = create(client, tiny_gpt2, file)
        assert first.status_code == 200, first.text
        full = create(client, tiny_gpt2, file)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "tenant_queue_full")
        assert full.headers["retry-after"]
        client.post(f"/v1/fine_tuning/jobs/{first.json()['id']}/cancel")
        assert create(client, tiny_gpt2, file).status_code == 200
    limited(guarded, max_queued_jobs=None)


def test_a_job_for_another_users_prefix_is_refused_before_it_is_queued(
    guarded: Guarded, tiny_gpt2: FrozenModel
) -> None:
    prefix = encode(random_prefix(tiny_gpt2, 2, seed=5))
    with guarded.client(guarded.key()) as client:
        binary = {"content-type": "application/octet-stream"}
        url = "/v1/prefixes/anns/versions?user=ann"
        assert client.post(url, content=prefix, headers=binary).status_code == 201
        file = upload(client).json()["id"]
        refused = create(client, tiny_gpt2, file, suffix="anns", user="bob")
        assert refused.status_code == 409
        assert refused.json()["error"]["param"] == "suffix"
        assert "suffix: prefix 'anns' is there and is not this user's" in refused.text
        infix = {"type": "infix"}  # it becomes no version, so the name is free
        taken = [
            create(client, tiny_gpt2, file, suffix="anns", user="ann"),
            create(client, tiny_gpt2, file, suffix="anns"),
            create(client, tiny_gpt2, file, suffix="anns", user="bob", method=infix),
        ]
        assert [reply.status_code for reply in taken] == [200, 200, 200]


def test_a_tenant_whose_quota_of_prefixes_is_full_queues_no_job_for_a_new_one(
    guarded: Guarded, tiny_gpt2: FrozenModel
) -> None:
    full = random_prefix(tiny_gpt2, 2, seed=6)
    assert guarded.push("full", full, guarded.key("rival")).status_code == 201
    tenants = guarded.server.services.tenants
    with guarded.client(guarded.key("rival")) as client:
        file = upload(client).json()["id"]
        for limits, allowed in (
            ({"max_prefixes": 1}, {"full": 200, "new": 409}),
            ({"max_prefixes": None, "max_bytes": 10}, {"full": 409, "new": 409}),
            ({"max_bytes": None}, {"full": 200, "new": 200}),
        ):
            tenants.change("rival", limits=limits)
            guarded.server.services.registry.catalog.feed.poll()
            for suffix, status in allowed.items():
                reply = create(client, tiny_gpt2, file, suffix=suffix)
                assert reply.status_code == status, (limits, suffix)
                if status == 409:
                    error = reply.json()["error"]
                    assert (error["code"], error["param"]) == ("quota_exceeded", "suffix")


def test_a_prefix_is_kept_while_an_open_job_is_trained_behind_it(
    guarded: Guarded, tiny_gpt2: FrozenModel
) -> None:
    task = random_prefix(tiny_gpt2, 2, seed=7)
    assert guarded.push("task", task, guarded.key()).status_code == 201
    paths = ("/v1/prefixes/task", f"/v1/prefixes/task/versions/{task.digest}", "/v1/models/task")
    with guarded.client(guarded.key()) as client:
        file = upload(client).json()["id"]
        job = create(client, tiny_gpt2, file, on="task").json()["id"]
        for path in paths:
            refused = client.delete(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
            assert f"the job {job} has not ended" in refused.text
        client.post(f"/v1/fine_tuning/jobs/{job}/cancel")
        assert client.delete(paths[0]).status_code == 200


def test_a_tenant_keeps_no_more_bytes_than_it_may(guarded: Guarded) -> None:
    with guarded.client(guarded.key()) as client:
        used = sum(file["bytes"] for file in client.get("/v1/files").json()["data"])
        limited(guarded, max_training_bytes=used + len(LINES))
        assert upload(client).status_code == 200
        full = upload(client)
        assert (full.status_code, full.json()["error"]["code"]) == (409, "quota_exceeded")
    limited(guarded, max_training_bytes=None)


def test_files_that_take_long_to_check_keep_no_other_request_waiting(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, begun = threading.Event(), []

    def check_slowly(*arguments: Any) -> CheckedFile:
        begun.append(threading.current_thread().name)
        assert checked.wait(30)
        return check_file(*arguments)

    monkeypatch.setattr(files, "check_file", check_slowly)
    with (
        guarded.client(guarded.key()) as mine,
        guarded.client(guarded.key("rival")) as theirs,
        ThreadPoolExecutor(4) as uploads,
    ):
        made = [uploads.submit(upload, client) for client in (mine, mine, theirs, theirs)]
        until(lambda: len(begun) == 2)
        try:
            for client in (mine, theirs):
                reply = client.post("/tokenize", json={"inputs": "the fox"}, timeout=10)
                assert reply.status_code == 200
                assert len(begun) == 2  # each tenant's other file waits
        finally:
            checked.set()
        assert [each.result().status_code for each in made] == [200] * 4


def test_what_is_done_is_on_record_by_its_id_and_without_content(
    guarded: Guarded, tiny_gpt2: FrozenModel
) -> None:
    with guarded.client(guarded.key()) as client:
        file = upload(client, b'{"input": "very secret", "target": "b"}\n').json()["id"]
        job = create(client, tiny_gpt2, file, suffix="hidden").json()["id"]
        client.post(f"/v1/fine_tuning/jobs/{job}/cancel")
        client.delete(f"/v1/files/{file}")
        records = client.get("/admin/audit?tenant=acme&limit=100").json()
    text = str(records)
    assert "very secret" not in text
    changed = [
        (record["action"], change[2])
        for record in records["data"]
        for change in record.get("changed", [])
        if change[2] in (file, job)
    ]
    assert changed == [
        ("upload_file", file), ("create_job", job), ("cancel_job", job), ("delete_file", file),
    ]  # fmt: skip
