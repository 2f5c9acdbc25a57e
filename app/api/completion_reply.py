"""What `/v1/completions` answers: OpenAI's legacy completion objects, whole and in chunks.

Pure functions and small collectors; knows nothing about HTTP or the engine's workings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.engine.request import Event, PromptScored, RowFinished, TextDelta, TokenScore

Json = dict[str, Any]

_GOES_ON = b'"finish_reason":null'


@dataclass(frozen=True)
class ReplyHead:
    """What all chunks of a reply have in common. `created` is in seconds since 1970."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @property
    def fields(self) -> Json:
        """The common fields."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


@dataclass
class RowReply:
    """One row as it grows: its text, its scores and its end."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    finish_reason: str | None = None
    num_tokens: int = 0
    cumulative_logprob: float = 0.0
    beam_score: float | None = None

    def add(self, event: TextDelta | RowFinished) -> None:
        """Take in an event of this row."""
        if isinstance(event, TextDelta):
            self.text += event.text
            self.scores.extend(event.tokens)
        else:
            self.finish_reason = event.reason.value
            self.num_tokens = event.num_tokens
            self.cumulative_logprob = event.cumulative_logprob or 0.0
            self.beam_score = event.score

    @property
    def rank(self) -> float:
        """By which results are ordered: a beam's score, else the log-probability per token."""
        if self.beam_score is not None:
            return self.beam_score
        return self.cumulative_logprob / max(1, self.num_tokens)

    @property
    def extras(self) -> Json:
        """What only the results of beams have."""
        return {} if self.beam_score is None else {"beam_score": self.beam_score}


@dataclass
class PromptReply:
    """The rows of one prompt and, with `echo`, the prompt itself."""

    rows: list[RowReply]
    num_prompt: int
    echo_text: str = ""
    prompt_scores: list[TokenScore] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Take in an event of this prompt."""
        if isinstance(event, PromptScored):
            self.prompt_scores.extend(event.scores)
        elif isinstance(event, TextDelta | RowFinished):
            self.rows[event.index].add(event)

    def best(self, count: int) -> list[RowReply]:
        """The `count` most probable rows per token; all in their order if none is left out."""
        if count >= len(self.rows):
            return self.rows
        return sorted(self.rows, key=lambda row: -row.rank)[:count]


def usage(prompts: Iterable[PromptReply]) -> Json:
    """OpenAI's token counts; prefixes cost no tokens."""
    prompts = list(prompts)
    prompt = sum(reply.num_prompt for reply in prompts)
    completion = sum(row.num_tokens for reply in prompts for row in reply.rows)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def whole_reply(
    head: ReplyHead, prompts: Sequence[PromptReply], n: int, logprobs: int | None
) -> Json:
    """The reply that is not streamed."""
    choices: list[Json] = []
    for prompt in prompts:
        for row in prompt.best(n):
            scores = [*prompt.prompt_scores, *row.scores]
            choices.append(
                {
                    "text": prompt.echo_text + row.text,
                    "index": len(choices),
                    "logprobs": None if logprobs is None else logprobs_object(scores, logprobs, 0),
                    "finish_reason": row.finish_reason,
                    **row.extras,
                }
            )
    return {**head.fields, "choices": choices, "usage": usage(prompts)}


def logprobs_object(scores: Sequence[TokenScore], num_top: int, offset: int) -> Json:
    """OpenAI's legacy `logprobs`; `offset` is where the first token's text begins."""
    offsets: list[int] = []
    for score in scores:
        offsets.append(offset)
        offset += len(score.text)
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [_top_object(score) for score in scores] if num_top else None,
        "text_offset": offsets,
    }


def _top_object(score: TokenScore) -> dict[str, float] | None:
    """Alternatives by text, the chosen token always among them; None where nothing precedes."""
    if score.logprob is None:
        return None
    top: dict[str, float] = {}
    for _, text, logprob in score.top:
        top.setdefault(text, logprob)
    top.setdefault(score.text, score.logprob)
    return top


class ChunkWriter:
    """Writes a stream's chunks as events; what they share is serialised once."""

    def __init__(self, head: ReplyHead, logprobs: int | None, include_usage: bool) -> None:
        self._head = head
        self._logprobs = logprobs
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        common = _dumps(head.fields)[:-1]
        self._open = b"data: " + common + b',"choices":['
        self._offsets: dict[int, int] = {}

    def choice(self, index: int, text: str, scores: Sequence[TokenScore]) -> bytes:
        """A chunk with new text of one choice."""
        return self._chunk(index, text, scores, _GOES_ON) + self._tail

    def end(self, index: int, row: RowReply, timings: Json | None) -> bytes:
        """A choice's last chunk; with `timings` if it is the stream's last one too."""
        times = b"" if timings is None else b',"timings":' + _dumps(timings)
        end = _dumps({"finish_reason": row.finish_reason, **row.extras})[1:-1]
        return self._chunk(index, "", (), end) + times + self._tail

    def _chunk(self, index: int, text: str, scores: Sequence[TokenScore], end: bytes) -> bytes:
        logprobs = b"null"
        if self._logprobs is not None:
            offset = self._offsets.get(index, 0)
            logprobs = _dumps(logprobs_object(scores, self._logprobs, offset))
            self._offsets[index] = offset + sum(len(score.text) for score in scores)
        fields = (_dumps(text), index, logprobs, end)
        return self._open + b'{"text":%b,"index":%d,"logprobs":%b,%b}]' % fields

    def usage(self, prompts: Sequence[PromptReply], timings: Json) -> bytes:
        """The additional last chunk of a stream that was to include its usage."""
        totals = {"choices": [], "usage": usage(prompts), "timings": timings}
        return b"data: " + _dumps({**self._head.fields, **totals}) + b"\n\n"


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
