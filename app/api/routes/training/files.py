"""`/v1/files`: what is uploaded to train on, as OpenAI keeps files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse

from app.api.dependencies import Caller, CallerDep, LimitsDep, TrainingDep, UploadsDep
from app.api.errors import ErrorShape
from app.api.form import OVERHEAD, Form, boundary_of, read_form
from app.api.routing import FILE, Answer, Router
from app.api.schemas.training import FileDeleted, FileForm, FilePage, FileReply
from app.api.schemas.users import UserQuery
from app.errors import FileTooLarge, InvalidRequest
from app.jobs.checking import check_file, check_filename, check_purpose
from app.jobs.erasure import check_user
from app.jobs.services import TrainingServices
from app.jobs.types import TrainingFile
from app.prefix.strict_json import printable
from app.registry.storage.store import StagedFile
from app.tenancy.auth.principal import Scope

router = Router("files")

_SCOPES = [Scope.TRAIN]
_TEXTS = ("purpose", "user", "expires_after[anchor]", "expires_after[seconds]")
_WRITE_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_EXPIRES_S = (3600, 30 * 86_400)


@router.route(
    "POST",
    "/v1/files",
    answers=FileReply,
    scopes=_SCOPES,
    takes_form=FileForm,
    counted=True,
    error_shape=ErrorShape.OPENAI,
    errors=[400, 409],
)
async def upload_file(
    request: Request,
    training: TrainingDep,
    limits: LimitsDep,
    uploads: UploadsDep,
    caller: CallerDep,
) -> Response:
    """Keeps a file that was checked, line by line: a form with `file` and `purpose`.

    `purpose` is `fine-tune` for JSON lines of `input` and `target` (or `targets`), or of `prompt`
    and `completion`; `user_data` for one text. `user` says whose it is. An error names the line.
    """
    boundary = boundary_of(request.headers.get("content-type", ""))
    most = limits.max_training_file_bytes
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most + OVERHEAD:
        raise FileTooLarge(f"a file has at most {most} bytes", param="file")
    with uploads.slot(caller.tenant):
        async with _staging(training, caller) as staged:
            form = await _receive(request, staged, caller, boundary, most)
            purpose, user, expires_after_s = _read_texts(form)
            checked = await caller.workers.checks.run(
                caller.tenant, check_file, staged.path, form.filename or "", purpose
            )
            made: TrainingFile = await caller.workers.store.finish(
                caller.tenant,
                training.files.add,
                caller.tenant,
                staged.path,
                checked,
                user=user,
                expires_after_s=expires_after_s,
                max_bytes=caller.principal.limits.max_training_bytes,
                actor=caller.actor,
            )
    return _reply(made).response()


@router.route(
    "GET",
    "/v1/files",
    answers=FilePage,
    scopes=_SCOPES,
    error_shape=ErrorShape.OPENAI,
    errors=[404],
)
async def list_files(
    training: TrainingDep,
    caller: CallerDep,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    user: UserQuery = None,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The caller's files, at most 1,000 at a time; `after` is the last id that was seen.

    With `user`, those of that user.
    """
    part = await caller.read(
        training.files.list,
        caller.tenant,
        after=after,
        limit=limit,
        purpose=purpose,
        user=user,
        oldest_first=order == "asc",
    )
    data = [_reply(file) for file in part.items]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return FilePage(data=data, first_id=ends[0], last_id=ends[1], has_more=part.has_more).response()


@router.route(
    "GET", "/v1/files/{file_id}", answers=FileReply, scopes=_SCOPES, error_shape=ErrorShape.OPENAI
)
async def get_file(file_id: str, training: TrainingDep, caller: CallerDep) -> Response:
    """What is known of one file."""
    return _reply(await caller.read(training.files.get, caller.tenant, file_id)).response()


@router.route(
    "GET",
    "/v1/files/{file_id}/content",
    answers=Answer({FILE: None}),
    scopes=_SCOPES,
    error_shape=ErrorShape.OPENAI,
)
async def get_file_content(
    file_id: str, training: TrainingDep, caller: CallerDep
) -> StreamingResponse:
    """The file's bytes, as they were uploaded."""
    tenant, store = caller.tenant, caller.workers.store
    file = await store.run(tenant, training.files.open, tenant, file_id)

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while piece := await caller.workers.files.run(tenant, file.read, _READ_BYTES):
                yield piece
        finally:
            await asyncio.to_thread(file.close)

    return StreamingResponse(pieces(), media_type=FILE)


@router.route(
    "DELETE",
    "/v1/files/{file_id}",
    answers=FileDeleted,
    scopes=_SCOPES,
    error_shape=ErrorShape.OPENAI,
    errors=[409],
)
async def delete_file(file_id: str, training: TrainingDep, caller: CallerDep) -> Response:
    """Forgets a file; 409 while a job that has not ended needs it."""
    await caller.write(training.files.delete, caller.tenant, file_id)
    return FileDeleted(id=file_id).response()


@asynccontextmanager
async def _staging(training: TrainingServices, caller: Caller) -> AsyncIterator[StagedFile]:
    """A file to receive an upload into; gone at the end of the block unless it is kept."""
    files, context = caller.workers.files, training.files.stage()
    staged = await files.finish(caller.tenant, context.__enter__)
    try:
        yield staged
    finally:
        await files.finish(caller.tenant, context.__exit__, None, None, None)


async def _receive(
    request: Request, staged: StagedFile, caller: Caller, boundary: bytes, most: int
) -> Form:
    """Streams the form's file to disk."""
    pending = bytearray()
    pool = caller.workers.files

    async def write(piece: bytes) -> None:
        pending.extend(piece)
        if len(pending) >= _WRITE_BYTES:
            await pool.run(caller.tenant, staged.write, bytes(pending))
            pending.clear()

    form = await read_form(request.stream(), boundary, write, file_field="file", max_bytes=most)
    await pool.run(caller.tenant, staged.write, bytes(pending))
    check_filename(form.filename or "")
    return form


def _read_texts(form: Form) -> tuple[str, str | None, int | None]:
    """Purpose, user, and seconds until the file expires."""
    unknown = next((name for name in form.texts if name not in _TEXTS), None)
    if unknown is not None:
        known = ", ".join(("file", *_TEXTS))
        raise InvalidRequest(
            f"unknown field {printable(unknown)}; there are {known}", param=unknown[:64]
        )
    purpose, user = form.texts.get("purpose"), form.texts.get("user")
    if purpose is None:
        raise InvalidRequest("say what the file is for: `purpose=fine-tune`", param="purpose")
    check_purpose(purpose)
    if user is not None:
        check_user(user)
    return purpose, user, _read_expiry(form)


def _read_expiry(form: Form) -> int | None:
    anchor = form.texts.get("expires_after[anchor]")
    seconds = form.texts.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    least, most = _EXPIRES_S
    is_number = seconds is not None and seconds.isascii() and seconds.isdigit()
    if anchor != "created_at" or not is_number or not least <= int(str(seconds)[:10]) <= most:
        raise InvalidRequest(
            f"expires_after takes the anchor `created_at` and {least} to {most} seconds",
            param="expires_after",
        )
    return int(str(seconds))


def _reply(file: TrainingFile) -> FileReply:
    return FileReply.of(file, bytes=file.nbytes)
