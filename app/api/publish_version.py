"""From a staged file to a version of a prefix: checked, probed, then committed.

Nothing is visible before all checks have passed, and a file that fails leaves nothing behind.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastapi import Response
from starlette.types import Receive

from app.api.evaluate_version import EvaluationService
from app.api.generation.generation import cancel_on_disconnect
from app.api.generation.prefix_selection import PrefixSelection, SelectedPrefix
from app.api.routing import JSON, Answer
from app.api.schemas.evaluations import DecodingFields
from app.api.schemas.prefixes import VersionReply
from app.api.side_work import SideQueue
from app.db.database import Actor
from app.engine.engine import Engine
from app.engine.request import GenerationRequest, RequestFailed, SamplingParams
from app.errors import GenerationFault, InvalidPrefix, InvalidRequest
from app.model.dense import check_finite, keys_values_of_embeddings
from app.model.frozen import FrozenModel
from app.model.text import Text
from app.prefix.codec import decode, encode, max_file_bytes
from app.prefix.formats.detection import (
    ForeignCheckpoint,
    ImportTarget,
    import_checkpoint,
    is_prompt_tuning,
    prompt_positions,
    read_upload,
)
from app.prefix.prefix import Prefix, PrefixMetadata
from app.prefix.spec import BaseModelSpec
from app.registry.quality_gates import QualityGate, write_when_scored
from app.registry.registry import Registry
from app.registry.storage.store import StagedFile
from app.registry.types import Quota, Version
from app.runtime.prefix_cache import PrefixCache, PrefixKey
from app.runtime.workers import Workers
from app.tenancy.auth.principal import Principal
from app.training.publish import describe

_HIDDEN_UNITS = 1024
"""Of an MLP in a checkpoint; the authors have 512 and 800."""

NEW_VERSION = Answer({JSON: VersionReply}, ("location",))
"""What a route answers that makes a version: 201, or 200 if the prefix had it already."""


@dataclass(frozen=True)
class PublishedVersion:
    """A version that is committed; `created` is False if the prefix had it already.

    `warnings` say what its owner should look at, though nothing is wrong with it as such.
    """

    version: Version
    prefix: Prefix
    created: bool
    warnings: Sequence[str] = ()

    @property
    def reply(self) -> Response:
        """201 with the version, 200 if it was there."""
        lengths = {name: part.length for name, part in self.prefix.modules.items()}
        warnings = {"warnings": list(self.warnings)} if self.warnings else {}
        return VersionReply.of(self.version, lengths=lengths, **warnings).response(
            201 if self.created else 200,
            {"location": f"/v1/prefixes/{self.version.name}/versions/{self.version.digest}"},
        )


@dataclass(frozen=True)
class VersionPublisher:
    """Makes versions of files. One request may take `timeout` seconds of computation."""

    registry: Registry
    prefix_cache: PrefixCache
    engine: Engine
    evaluations: EvaluationService
    side_queue: SideQueue
    workers: Workers
    max_length: int
    timeout: float

    @property
    def max_file_bytes(self) -> int:
        """The largest file that may hold a prefix of this model."""
        return max_file_bytes(self.engine.model.spec, self.max_length)

    @property
    def max_checkpoint_bytes(self) -> int:
        """The largest checkpoint of another library: it may hold the MLP that makes a prefix.

        An MLP is as large as a prefix with a position for each hidden unit.
        """
        return max_file_bytes(self.engine.model.spec, self.max_length + _HIDDEN_UNITS)

    @asynccontextmanager
    async def staging(self, tenant: str) -> AsyncIterator[StagedFile]:
        """A file to receive a version into; gone at the end of the block unless it is published."""
        files, context = self.workers.files, self.registry.stage()
        staged = await files.finish(tenant, context.__enter__)
        try:
            yield staged
        finally:
            await files.finish(tenant, context.__exit__, None, None, None)

    async def publish(
        self,
        principal: Principal,
        name: str,
        path: Path,
        alias: str | None,
        receive: Receive,
        actor: Actor,
        user: str | None = None,
    ) -> PublishedVersion:
        """Make the file at `path` a version of `name`, and point `alias` at it if one is given.

        A new prefix is the `user`'s; Conflict if the prefix is there and is another's.
        Raises what the file's checks raise, InvalidPrefix if the model cannot compute with it,
        QuotaExceeded, and GateNotPassed if the alias demands more of it. Nothing is scored any
        more once the client, which `receive` listens to, has gone away. The audit log names the
        `actor`.
        """
        tenant, model = principal.tenant, self.engine.model
        prefix, on_device, warnings = await self.workers.files.run(
            tenant, _decode, model, path, self.max_length
        )
        if not await self._is_served(tenant, name, prefix.digest):
            deadline = time.monotonic() + self.timeout
            await self.side_queue.run(tenant, deadline, check_finite, model, on_device)
            await _probe(self.engine, on_device, principal)
        commit = partial(
            self.registry.add_version,
            tenant,
            name,
            describe(prefix),
            path,
            alias=alias,
            quota=Quota(principal.limits.max_prefixes, principal.limits.max_bytes),
            user=user,
            actor=actor,
        )

        async def score(_: str, gate: QualityGate) -> float:
            selection = PrefixSelection([SelectedPrefix(name, prefix.digest, on_device)])
            evaluation = self.evaluations.begin(principal, selection, DecodingFields())
            return await cancel_on_disconnect(receive, evaluation.gate_score(gate))

        write = partial(self.workers.store.finish, tenant, commit)
        version, created = await write_when_scored(write, score)
        return PublishedVersion(version, prefix, created, warnings)

    async def publish_foreign(
        self,
        principal: Principal,
        name: str,
        path: Path,
        config: str,
        alias: str | None,
        receive: Receive,
        actor: Actor,
        user: str | None = None,
    ) -> PublishedVersion:
        """As `publish`, of a foreign checkpoint: its tensors at `path`, the text of its `config`.

        Also raises BaseModelMismatch if it is for another base model, and for prompt tuning, which
        the base model reads once, what limits of the tenant raise.
        """
        tenant, files = principal.tenant, self.workers.files
        checkpoint = await files.run(tenant, read_upload, path, config, self.max_checkpoint_bytes)
        prefix = await cancel_on_disconnect(receive, self._convert(principal, checkpoint))
        async with self.staging(tenant) as staged:
            await files.run(tenant, lambda: staged.write(encode(prefix)))
            return await self.publish(principal, name, staged.path, alias, receive, actor, user)

    async def _convert(self, principal: Principal, checkpoint: ForeignCheckpoint) -> Prefix:
        """The prefix that a checkpoint stands for, computed beside the engine."""
        tenant, model = principal.tenant, self.engine.model
        deadline = time.monotonic() + self.timeout
        run = partial(keys_values_of_embeddings, model)
        target = ImportTarget(model.spec, model.family, self.max_length, run)
        if not is_prompt_tuning(checkpoint):
            return await self.side_queue.run(
                tenant, deadline, import_checkpoint, checkpoint, target
            )
        positions = await self.workers.files.run(tenant, prompt_positions, checkpoint, target)
        [prefix] = await self.evaluations.queue.run(
            principal,
            deadline,
            import_checkpoint,
            [(checkpoint, target)],
            tokens=[positions],
            selection=PrefixSelection([]),
        )
        return prefix

    async def _is_served(self, tenant: str, name: str, digest: str) -> bool:
        """Whether the tenant has this content already, and the model computes with it now."""
        find = self.registry.find_content
        content = await self.workers.catalog.run(tenant, find, tenant, name, digest)
        return content is not None and self.prefix_cache.contains(PrefixKey(*content)) == "device"


def _decode(model: FrozenModel, path: Path, max_length: int) -> tuple[Prefix, Prefix, list[str]]:
    """The prefix as the file has it, and on the device, and what is odd about its metadata."""
    prefix = decode(path, model.spec, model.dtype, max_length=max_length)
    on_device = prefix.to(model.device, model.dtype)
    warnings = _check_template(model.text, prefix.metadata.input_template)
    return prefix, on_device, [*_check_base_name(model.spec, prefix.metadata), *warnings]


def _check_base_name(spec: BaseModelSpec, metadata: PrefixMetadata) -> list[str]:
    """What is odd about the name of a base model that no fingerprint identifies."""
    named = metadata.base_model
    if named is None or metadata.base_fingerprint is not None:
        return []
    if named.rpartition("/")[2].lower() == spec.model_id.rpartition("/")[2].lower():
        return []
    return [
        f"base_model: the file names {ascii(named)} and this server serves {spec.model_id!r}; the "
        "shapes fit, but a prefix is of use only with the weights that it was trained on"
    ]


def _check_template(text: Text, template: str | None) -> list[str]:
    """What is odd about a prefix's template; InvalidPrefix if the model cannot read it."""
    if template is None:
        return []
    try:
        text.render(template, "")
    except InvalidRequest as error:
        raise InvalidPrefix(f"input_template: {error.message}") from error
    return [
        f"input_template: {part} is no special token of this base model's tokenizer, so the model "
        "reads it letter by letter"
        for part in text.unknown_specials(template)
    ]


async def _probe(engine: Engine, prefix: Prefix, principal: Principal) -> None:
    """One token with the prefix by what serves, as a row of its own.

    Where there is an encoder it reads a token too, so that every module of the prefix is used.
    """
    request = GenerationRequest(
        id=f"probe-{secrets.token_hex(12)}",
        tenant=principal.tenant,
        weight=principal.limits.weight,
        prompt_ids=(0,),
        sampling=SamplingParams(max_tokens=1),
        prefixes=(prefix,),
    )
    async for event in engine.submit(request):
        if isinstance(event, RequestFailed):
            if isinstance(event.error, GenerationFault):
                raise InvalidPrefix(
                    "not a usable prefix: with it the model's next-token logits are not finite"
                )
            raise event.error
