"""Uploading a prefix version: streamed to disk and counted, then admitted as any new version."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Header, Request, Response
from starlette.requests import ClientDisconnect

from app.api.dependencies import CallerDep, PublisherDep, UploadsDep
from app.api.publish_version import NEW_VERSION
from app.api.routing import Router
from app.api.schemas.users import UserQuery
from app.errors import (
    FileTooLarge,
    InvalidRequest,
    RequestCancelled,
    UnsupportedMediaType,
)
from app.jobs.erasure import check_user
from app.prefix.formats.peft import MAX_CONFIG_BYTES
from app.prefix.reference import check_alias, check_name
from app.registry.storage.store import StagedFile
from app.runtime.workers import WorkerPool
from app.tenancy.auth.principal import Scope

router = Router("prefixes")

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_WRITE_BYTES = 1 << 20


@router.route(
    "POST",
    "/v1/prefixes/{name}/versions",
    answers=NEW_VERSION,
    statuses=[200, 201],
    scopes=[Scope.PREFIXES_WRITE],
    takes_file=True,
    errors=[409, 422, 504],
)
async def upload_version(
    name: str,
    request: Request,
    publisher: PublisherDep,
    uploads: UploadsDep,
    caller: CallerDep,
    x_alias: Annotated[str | None, Header(max_length=64)] = None,
    x_adapter_config: Annotated[str | None, Header(max_length=MAX_CONFIG_BYTES)] = None,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    user: UserQuery = None,
) -> Response:
    """A new version of a prefix from its raw file; the same content again is the same version.

    With `x-adapter-config`, the text of an `adapter_config.json` (of the authors' code: of its
    `config.json`), the body is the safetensors file of a checkpoint of PEFT (prefix tuning,
    cartridges, prompt tuning), AdapterHub or the authors' code, and becomes a prefix file. An
    upload is idempotent by its content, so `Idempotency-Key` is checked for its form alone. A new
    prefix is the one of `user`; an old one must be this user's already.
    """
    check_name(name)
    if x_alias is not None:
        check_alias(x_alias)
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 printable ASCII characters")
    if user is not None:
        check_user(user)
    _check_type(request)
    tenant, files = caller.tenant, caller.workers.files
    with uploads.slot(tenant):
        async with publisher.staging(tenant) as staged:
            limit = publisher.max_file_bytes
            if x_adapter_config is not None:
                limit = publisher.max_checkpoint_bytes
            await _receive(request, staged, files, tenant, limit)
            facts = (x_alias, request.receive, caller.actor, user)
            if x_adapter_config is None:
                admitted = await publisher.publish(caller.principal, name, staged.path, *facts)
            else:
                admitted = await publisher.publish_foreign(
                    caller.principal, name, staged.path, x_adapter_config, *facts
                )
    return admitted.reply


def _check_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "application/octet-stream")
    if media_type.partition(";")[0].strip().lower() != "application/octet-stream":
        raise UnsupportedMediaType("send the safetensors file itself as application/octet-stream")


async def _receive(
    request: Request, staged: StagedFile, pool: WorkerPool, tenant: str, limit: int
) -> None:
    """Stream the body to disk; what the client declares about its length is not believed."""
    error = FileTooLarge(
        f"a file for this model has at most {limit} bytes; `polyprefix prefix push` converts larger"
        " checkpoints of other libraries before it sends them"
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise error
    size = 0
    pending = bytearray()
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise error
            pending += part
            if len(pending) >= _WRITE_BYTES:
                await pool.run(tenant, staged.write, bytes(pending))
                pending.clear()
    except ClientDisconnect as gone:
        raise RequestCancelled("the client went away") from gone
    await pool.run(tenant, staged.write, bytes(pending))
