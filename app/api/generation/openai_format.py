"""What `/v1/completions` answers: OpenAI's legacy completion objects, whole and in chunks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.api.generation.engine_input import off_loop
from app.api.generation.generation import Generation, GenerationService
from app.api.schemas.base import encode_json
from app.api.schemas.generation import CompletionBody
from app.engine.request import (
    Event,
    FinishReason,
    GenerationRequest,
    PromptScored,
    RowFinished,
    TextDelta,
    TokenScore,
)

Json = dict[str, Any]

_MANY = 64
"""Tokens of a chunk that are written in pieces."""
_GOES_ON = b'"finish_reason":null'


@dataclass
class RowReply:
    """One row as it grows: its text, its scores and, once it has ended, its totals in `end`."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    end: RowFinished = RowFinished(0, FinishReason.LENGTH, 0, None)

    def add(self, event: TextDelta | RowFinished) -> None:
        """Take in an event of this row."""
        if isinstance(event, TextDelta):
            self.text += event.text
            self.scores.extend(event.tokens)
        else:
            self.end = event

    @property
    def rank(self) -> float:
        """By which results are ordered: a beam's score, else the log-probability per token."""
        if self.end.score is not None:
            return self.end.score
        return (self.end.cumulative_logprob or 0.0) / max(1, self.end.num_tokens)

    @property
    def ending(self) -> Json:
        """How a choice says that its row has ended; only results of beams have a score."""
        reason = self.end.reason.value
        if self.end.score is None:
            return {"finish_reason": reason}
        return {"finish_reason": reason, "beam_score": self.end.score}


class PromptReply:
    """The rows of one request and, with `echo`, its prompt.

    `echo_starts` says where in `echo_text` each token of the prompt begins.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.rows = [RowReply() for _ in range(request.n)]
        self.num_prompt = len(request.prompt_ids)
        self.prompt_scores: list[TokenScore] = []
        self.echo_text = ""
        self.echo_starts: Sequence[int] = ()

    @property
    def score_starts(self) -> Sequence[int]:
        """Where the scored tokens of the prompt begin."""
        return self.echo_starts[: len(self.prompt_scores)]

    def add(self, event: Event) -> None:
        """Take in an event of this prompt."""
        if isinstance(event, PromptScored):
            self.prompt_scores.extend(event.scores)
        elif isinstance(event, TextDelta | RowFinished):
            self.rows[event.index].add(event)


class CompletionReply:
    """Collects one generation and shapes it, whole or in parts."""

    def __init__(
        self, body: CompletionBody, generation: Generation, service: GenerationService
    ) -> None:
        self._body, self._generation, self._service = body, generation, service
        self._head: Json = {
            "id": f"cmpl-{time.time_ns():x}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": service.system_fingerprint,
        }
        self.prompts = list(map(PromptReply, generation.requests))
        self._echoed: set[int] = set()

    @property
    def size(self) -> int:
        """Tokens that the reply shows, whose texts and scores it has."""
        size = 0
        for prompt in self.prompts:
            for row in prompt.rows:
                size += row.end.num_tokens + (prompt.num_prompt if self._body.echo else 0)
        return size

    async def spell(self) -> None:
        """Find the texts of the prompts, which are to be echoed."""
        text = self._service.model.text
        prompts = [request.prompt_ids for request in self._generation.requests]
        spelled = await off_loop(
            self._service.text_pool,
            self._generation.tenant,
            sum(map(len, prompts)),
            lambda: [text.spell(prompt) for prompt in prompts],
        )
        for reply, (echo_text, starts) in zip(self.prompts, spelled, strict=True):
            reply.echo_text, reply.echo_starts = echo_text, starts

    def whole(self) -> Json:
        """The reply that is not streamed."""
        n, num_top = self._body.n or 1, self._body.logprobs
        choices: list[Json] = []
        for prompt in self.prompts:
            rows = prompt.rows
            if n < len(rows):  # the most probable ones per token
                rows = sorted(rows, key=lambda row: -row.rank)[:n]
            for row in rows:
                logprobs = None
                if num_top is not None:
                    scores = [*prompt.prompt_scores, *row.scores]
                    offsets = [*prompt.score_starts, *_offsets(row.scores, len(prompt.echo_text))]
                    logprobs = _logprobs_object(scores, num_top, offsets)
                choice = {
                    "text": prompt.echo_text + row.text,
                    "index": len(choices),
                    "logprobs": logprobs,
                    **row.ending,
                }
                choices.append(choice)
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def parts(self) -> AsyncIterator[bytes]:
        """The stream's events, as bytes; what arrives together is sent together."""
        options = self._body.stream_options
        include_usage = options is not None and options.include_usage
        writer = ChunkWriter(self._head, self._body.logprobs, include_usage)
        timings = self._generation.timings
        open_rows = sum(len(prompt.rows) for prompt in self.prompts)
        if self._body.echo:
            await self.spell()
        async for batch in self._generation.events():
            part = b""
            for index, event in batch:
                self.prompts[index].add(event)
                if isinstance(event, TextDelta | RowFinished):
                    part += await self._echo(writer, index, event.index)
                if isinstance(event, TextDelta):
                    part += self._delta(writer, index, event)
                elif isinstance(event, RowFinished):
                    open_rows -= 1
                    # the last row's end and its request's end arrive together
                    totals = None if open_rows or include_usage else timings.milliseconds
                    number = self._number(index, event.index)
                    row = self.prompts[index].rows[event.index]
                    part += writer.end(number, row, totals)
            if part:
                yield part
        if include_usage:
            yield writer.usage(self._usage(), timings.milliseconds)
        yield b"data: [DONE]\n\n"

    def _usage(self) -> Json:
        """OpenAI's token counts; prefixes cost no tokens."""
        prompt_tokens = completion_tokens = 0
        for prompt in self.prompts:
            prompt_tokens += prompt.num_prompt
            for row in prompt.rows:
                completion_tokens += row.end.num_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def _number(self, prompt: int, row: int) -> int:
        """The index of a choice among those of all prompts."""
        return prompt * len(self.prompts[0].rows) + row

    async def _echo(self, writer: ChunkWriter, prompt: int, row: int) -> bytes:
        """The prompt as the first chunk of a row, if it is to be echoed and was not yet."""
        number = self._number(prompt, row)
        if not self._body.echo or number in self._echoed:
            return b""
        self._echoed.add(number)
        await asyncio.sleep(0)  # others' turn between two prompts
        reply = self.prompts[prompt]
        size = len(reply.prompt_scores)
        pool, tenant = self._service.text_pool, self._generation.tenant
        return await off_loop(pool, tenant, size, writer.echo, number, reply)

    def _delta(self, writer: ChunkWriter, prompt: int, delta: TextDelta) -> bytes:
        if not delta.text and self._body.logprobs is None:
            return b""
        base = len(self.prompts[prompt].echo_text)
        return writer.choice(self._number(prompt, delta.index), delta.text, delta.tokens, base)


def _logprobs_object(scores: Sequence[TokenScore], num_top: int, offsets: Sequence[int]) -> Json:
    """OpenAI's legacy `logprobs`; `offsets` say where in the choice's text each token begins."""
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [_top_object(score) for score in scores] if num_top else None,
        "text_offset": list(offsets),
    }


def _offsets(scores: Sequence[TokenScore], base: int) -> list[int]:
    return [base + score.start for score in scores]


def _top_object(score: TokenScore) -> dict[str, float] | None:
    """Alternatives by text, the chosen token always among them; None where nothing precedes.

    A text that another token has already is told apart as `token_id:123`; the chosen token keeps
    its own.
    """
    if score.logprob is None:
        return None
    top: dict[str, float] = {}
    for token_id, text, logprob in score.top:
        if token_id == score.token_id:
            top[score.text] = logprob
        else:
            taken = text == score.text or text in top
            top[f"token_id:{token_id}" if taken else text] = logprob
    top.setdefault(score.text, score.logprob)
    return top


class ChunkWriter:
    """Writes a stream's chunks as events; what they share is serialised once."""

    def __init__(self, head: Json, logprobs: int | None, include_usage: bool) -> None:
        self._head = head
        self._logprobs = logprobs
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        common = _dumps(head)[:-1]
        self._open = b"data: " + common + b',"choices":['

    def echo(self, index: int, prompt: PromptReply) -> bytes:
        """The chunk with the prompt that comes before all others of a choice."""
        scores, starts = prompt.prompt_scores, prompt.score_starts
        return self._chunk(index, prompt.echo_text, scores, starts, _GOES_ON) + self._tail

    def choice(self, index: int, text: str, scores: Sequence[TokenScore], base: int = 0) -> bytes:
        """A chunk with new text of one choice, whose first `base` characters are the prompt's."""
        return self._chunk(index, text, scores, _offsets(scores, base), _GOES_ON) + self._tail

    def end(self, index: int, row: RowReply, timings: Json | None) -> bytes:
        """A choice's last chunk; with `timings` if it is the stream's last one too."""
        times = b"" if timings is None else b',"timings":' + _dumps(timings)
        return self._chunk(index, "", (), (), _dumps(row.ending)[1:-1]) + times + self._tail

    def _chunk(
        self,
        index: int,
        text: str,
        scores: Sequence[TokenScore],
        offsets: Sequence[int],
        end: bytes,
    ) -> bytes:
        logprobs = b"null"
        if self._logprobs is not None:
            shown = _logprobs_object(scores, self._logprobs, offsets)
            logprobs = _dumps(shown) if len(scores) < _MANY else encode_json(shown)
        fields = (_dumps(text), index, logprobs, end)
        return self._open + b'{"text":%b,"index":%d,"logprobs":%b,%b}]' % fields

    def usage(self, usage: Json, timings: Json) -> bytes:
        """The additional last chunk of a stream that was to include its usage."""
        totals = {"choices": [], "usage": usage, "timings": timings}
        return b"data: " + _dumps({**self._head, **totals}) + b"\n\n"


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
