"""`POST /v1/prefixes/{name}/from-text`: a prefix of real words' keys and values, untrained.

A request behind it reads as if those words stood before its prompt (Li & Liang 2021, initialisation
by real words). The text itself is not kept, but its keys and values say as much: whoever may
download the prefix may know the text.
"""

from __future__ import annotations

import hashlib
import time

from fastapi import Request, Response

from app.api.dependencies import CallerDep, EngineDep, EvaluationsDep, PublisherDep
from app.api.generation.engine_input import MAX_TOKEN_CHARACTERS, SURROGATE, off_loop
from app.api.generation.generation import cancel_on_disconnect
from app.api.generation.prefix_selection import PrefixSelection
from app.api.publish_version import NEW_VERSION
from app.api.routing import Router
from app.api.schemas.evaluations import FromTextBody
from app.errors import ContextLengthExceeded, Draining, InvalidRequest
from app.jobs.erasure import check_user
from app.model.frozen import FrozenModel
from app.model.text import INPUT_PLACEHOLDER
from app.prefix.codec import encode
from app.prefix.prefix import PrefixMetadata
from app.prefix.reference import check_alias, check_name
from app.tenancy.auth.principal import Scope
from app.training.words import words_prefix

router = Router("prefixes")

_PROBE = "a"


@router.route(
    "POST",
    "/v1/prefixes/{name}/from-text",
    answers=NEW_VERSION,
    statuses=[200, 201],
    scopes=[Scope.PREFIXES_WRITE],
    errors=[409, 504],
)
async def make_from_text(
    name: str,
    body: FromTextBody,
    request: Request,
    engine: EngineDep,
    evaluations: EvaluationsDep,
    publisher: PublisherDep,
    caller: CallerDep,
) -> Response:
    """A version made of a text; checked, probed and stored as an upload is.

    The same text again is the same version.
    """
    check_name(name)
    if body.alias is not None:
        check_alias(body.alias)
    if body.user is not None:
        check_user(body.user)
    if engine.progress().draining:
        raise Draining("the server is shutting down")
    tenant, workers, model = caller.tenant, caller.workers, engine.model
    ids = await off_loop(
        workers.text, tenant, len(body.text), _encode, model, body.text, publisher.max_length
    )
    metadata = _metadata(model, body, len(ids))
    deadline = time.monotonic() + publisher.timeout
    making = evaluations.queue.run(
        caller.principal,
        deadline,
        words_prefix,
        [(model, ids, metadata)],
        tokens=[len(ids)],
        selection=PrefixSelection([]),
    )
    [prefix] = await cancel_on_disconnect(request.receive, making)
    async with publisher.staging(tenant) as staged:
        await workers.files.run(tenant, lambda: staged.write(encode(prefix)))
        admitted = await publisher.publish(
            caller.principal,
            name,
            staged.path,
            body.alias,
            request.receive,
            caller.actor,
            body.user,
        )
    return admitted.reply


def _encode(model: FrozenModel, text: str, max_length: int) -> list[int]:
    """The text's tokens, special tokens in it being ordinary characters; InvalidRequest."""
    if model.encoder_decoder is not None:
        raise InvalidRequest(
            "this model's encoder reads a text as a whole, each word in the light of all others: "
            "keys and values of the words alone would not act as words before the source",
            param="text",
        )
    limit = min(max_length, model.spec.context_limit - 2)
    if len(text) > limit * MAX_TOKEN_CHARACTERS:
        raise _too_long(f"{len(text)} characters", limit)
    if SURROGATE.search(text):
        raise InvalidRequest("the text holds a lone surrogate", param="text")
    ids = model.text.encode(text)
    if not ids:
        raise InvalidRequest("the text has no tokens", param="text")
    if len(ids) > limit:
        raise _too_long(f"{len(ids)} tokens", limit)
    return ids


def _too_long(found: str, limit: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"the text has {found}; a prefix has at most {limit} positions here", param="text"
    )


def _metadata(model: FrozenModel, body: FromTextBody, length: int) -> PrefixMetadata:
    """What the file says: of the text its size and its SHA-256 alone."""
    text, spec = model.text, model.spec
    template = body.input_template
    if template is None and text.encode(_PROBE) != text.render(INPUT_PLACEHOLDER, _PROBE):
        # the text already begins with what the tokenizer puts before every text
        template = INPUT_PLACEHOLDER
    return PrefixMetadata(
        position_offset=length,
        base_model=spec.model_id,
        base_fingerprint=spec.fingerprint,
        input_template=template,
        provenance={
            "method": "from-text",
            "characters": len(body.text),
            "tokens": length,
            "sha256": hashlib.sha256(body.text.encode()).hexdigest(),
        },
    )
