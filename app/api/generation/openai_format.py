"""What `/v1/completions` answers: OpenAI's legacy completion objects, whole and in chunks.

Pure functions and small collectors; knows nothing about HTTP or the engine's workings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.api.large_json import encode_json
from app.engine.request import Event, PromptScored, RowFinished, TextDelta, TokenScore

Json = dict[str, Any]

_MANY = 64
"""Tokens of a chunk that are written in pieces."""
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
    """The rows of one prompt and, with `echo`, the prompt itself.

    `echo_starts` says where in its text each of its tokens begins.
    """

    rows: list[RowReply]
    num_prompt: int
    echo_text: str = ""
    echo_starts: Sequence[int] = ()
    prompt_scores: list[TokenScore] = field(default_factory=list)

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
            offsets = [*prompt.score_starts, *_offsets(row.scores, len(prompt.echo_text))]
            choices.append(
                {
                    "text": prompt.echo_text + row.text,
                    "index": len(choices),
                    "logprobs": None
                    if logprobs is None
                    else logprobs_object(scores, logprobs, offsets),
                    "finish_reason": row.finish_reason,
                    **row.extras,
                }
            )
    return {**head.fields, "choices": choices, "usage": usage(prompts)}


def logprobs_object(scores: Sequence[TokenScore], num_top: int, offsets: Sequence[int]) -> Json:
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

    def __init__(self, head: ReplyHead, logprobs: int | None, include_usage: bool) -> None:
        self._head = head
        self._logprobs = logprobs
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        common = _dumps(head.fields)[:-1]
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
        end = _dumps({"finish_reason": row.finish_reason, **row.extras})[1:-1]
        return self._chunk(index, "", (), (), end) + times + self._tail

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
            shown = logprobs_object(scores, self._logprobs, offsets)
            logprobs = _dumps(shown) if len(scores) < _MANY else encode_json(shown)
        fields = (_dumps(text), index, logprobs, end)
        return self._open + b'{"text":%b,"index":%d,"logprobs":%b,%b}]' % fields

    def usage(self, prompts: Sequence[PromptReply], timings: Json) -> bytes:
        """The additional last chunk of a stream that was to include its usage."""
        totals = {"choices": [], "usage": usage(prompts), "timings": timings}
        return b"data: " + _dumps({**self._head.fields, **totals}) + b"\n\n"


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
