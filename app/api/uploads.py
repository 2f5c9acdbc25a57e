"""Uploading a prefix version: streamed to disk and counted, checked, probed, then committed.

Nothing is visible before all checks have passed, and nothing is left of what fails.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from app.api.auth import TenantDep
from app.api.errors import StrictJSONResponse
from app.api.prefix_objects import version_object
from app.api.services import Services, ServicesDep
from app.engine.request import GenerationRequest, RequestFailed, SamplingParams
from app.errors import (
    FileTooLarge,
    GenerationFault,
    InvalidPrefix,
    InvalidRequest,
    PolyprefixError,
    RequestCancelled,
    UnsupportedMediaType,
)
from app.prefix.codec import decode, max_file_bytes
from app.prefix.prefix import Prefix
from app.prefix.reference import check_alias, check_name
from app.registry.objects import StagedFile
from app.registry.records import Version, VersionInfo

router = APIRouter()

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_WRITE_BYTES = 1 << 20


@router.post("/v1/prefixes/{name}/versions")
async def upload_version(
    name: str,
    request: Request,
    services: ServicesDep,
    tenant: TenantDep,
    x_alias: Annotated[str | None, Header(max_length=64)] = None,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Response:
    """A new version of a prefix from its raw file; the same content again is the same version.

    An upload is idempotent by its content, so `Idempotency-Key` is checked for its form alone.
    """
    check_name(name)
    if x_alias is not None:
        check_alias(x_alias)
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 printable ASCII characters")
    _check_type(request)
    with services.registry.stage() as staged:
        await _receive(request, staged, _limit(services))
        prefix = await asyncio.to_thread(_decode, services, staged.path)
        await _probe(services, prefix.to(services.model.device, services.model.dtype), tenant)
        version, created = await asyncio.to_thread(
            _commit, services, tenant, name, prefix, staged.path, x_alias
        )
    return StrictJSONResponse(
        version_object(version, {name: part.length for name, part in prefix.modules.items()}),
        201 if created else 200,
        {"location": f"/v1/prefixes/{name}/versions/{version.digest}"},
    )


def _check_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "application/octet-stream")
    if media_type.partition(";")[0].strip().lower() != "application/octet-stream":
        raise UnsupportedMediaType("send the safetensors file itself as application/octet-stream")


def _limit(services: Services) -> int:
    return max_file_bytes(services.model.spec, services.limits.max_prefix_length)


async def _receive(request: Request, staged: StagedFile, limit: int) -> None:
    """Stream the body to disk; what the client declares about its length is not believed."""
    error = FileTooLarge(f"a prefix file for this model has at most {limit} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise error
    size = 0
    pending = bytearray()
    async for part in _body_parts(request):
        size += len(part)
        if size > limit:
            raise error
        pending += part
        if len(pending) >= _WRITE_BYTES:
            await asyncio.to_thread(staged.write, bytes(pending))
            pending.clear()
    await asyncio.to_thread(staged.write, bytes(pending))


async def _body_parts(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes; RequestCancelled if the client goes away in its midst."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestCancelled("the client went away")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _decode(services: Services, path: Path) -> Prefix:
    model = services.model
    return decode(path, model.spec, model.dtype, max_length=services.limits.max_prefix_length)


async def _probe(services: Services, prefix: Prefix, tenant: str) -> None:
    """One token with the prefix, as a row of its own: finite values may still overflow inside.

    Where there is an encoder it reads a token too, so that every module of the prefix is used.
    """
    request = GenerationRequest(
        id=f"probe-{secrets.token_hex(12)}",
        tenant=tenant,
        prompt_ids=(0,),
        sampling=SamplingParams(max_tokens=1),
        prefixes=(prefix,),
    )
    async for event in services.engine.submit(request):
        if isinstance(event, RequestFailed):
            raise _refusal(event.error)


def _refusal(error: PolyprefixError) -> PolyprefixError:
    if isinstance(error, GenerationFault):
        return InvalidPrefix(
            "not a usable prefix: with it the model's next-token logits are not finite"
        )
    return error


def _commit(
    services: Services, tenant: str, name: str, prefix: Prefix, path: Path, alias: str | None
) -> tuple[Version, bool]:
    metadata = prefix.metadata
    info = VersionInfo(
        digest=prefix.digest,
        length=prefix.length,
        position_offset=metadata.position_offset,
        dtype=str(prefix.decoder.keys.dtype).removeprefix("torch."),
        nbytes=prefix.nbytes,
        base_model=metadata.base_model,
        base_fingerprint=metadata.base_fingerprint,
        input_template=metadata.input_template,
        decoding=metadata.decoding,
        provenance=metadata.provenance,
    )
    return services.registry.add_version(tenant, name, info, path, alias=alias)
