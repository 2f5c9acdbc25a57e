"""Replies of the generation routes, for the description: these routes write their JSON by hand."""

from __future__ import annotations

from typing import Literal

from pydantic import MISSING, RootModel

from app.api.schemas.base import Count, Reply, Seconds

SERVED_HEADERS = (
    "x-prefix-version",
    "x-prefix-tier",
    "x-queue-time",
    "x-time-to-first-token",
    "x-total-time",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)
GENERATION_ERRORS = (404, 409, 504)
"""What only requests that name a prefix, or take long, are answered with."""


class UsageFields(Reply):
    """Tokens of one request."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class TimingFields(Reply):
    """Times of one request in milliseconds."""

    queue_time: float
    time_to_first_token: float
    total_time: float


class CompletionLogprobs(Reply):
    """Scores of tokens, in lists of one length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[Count]


class ChunkChoice(Reply):
    """A part of one text."""

    text: str
    index: Count
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    beam_score: float | MISSING = MISSING


class CompletionChoice(ChunkChoice):
    """One text."""

    finish_reason: Literal["stop", "length"]


class Completion(Reply):
    """OpenAI's completion."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: Seconds
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageFields


class CompletionChunk(Reply):
    """An event of OpenAI's stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: Seconds
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: UsageFields | None | MISSING = MISSING
    timings: TimingFields | MISSING = MISSING


class TokenPiece(Reply):
    """A token and its text."""

    id: Count
    text: str


class PromptToken(TokenPiece):
    """A token of the prompt."""

    logprob: float | None


class GeneratedToken(PromptToken):
    """A token of the text."""

    special: bool


class StreamTotals(Reply):
    """The end of one text in TGI's stream."""

    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    prompt_tokens: Count
    input_length: Count
    generated_tokens: Count
    seed: int | None
    beam_score: float | MISSING = MISSING


class StreamDetails(StreamTotals):
    """The end of one text in TGI's stream, with times."""

    timings: TimingFields


class SequenceDetails(StreamTotals):
    """TGI's details of one text."""

    prefill: list[PromptToken]
    tokens: list[GeneratedToken]
    top_tokens: list[list[GeneratedToken]] | MISSING = MISSING


class BestOfSequence(SequenceDetails):
    """A text of `best_of`."""

    generated_text: str


class GenerationDetails(SequenceDetails):
    """TGI's details, with the other texts of `best_of`."""

    best_of_sequences: list[BestOfSequence] | MISSING = MISSING


class GeneratedReply(Reply):
    """TGI's reply."""

    generated_text: str
    details: GenerationDetails | MISSING = MISSING


class GeneratedListReply(RootModel[list[GeneratedReply]]):
    """TGI's reply to `POST /`."""


class StreamedToken(Reply):
    """An event of TGI's stream."""

    index: Count
    token: GeneratedToken
    generated_text: str | None
    details: StreamDetails | None
    top_tokens: list[GeneratedToken] | MISSING = MISSING


class TokenizedReply(Reply):
    """The tokens of a text."""

    count: Count
    tokens: list[Count]
    pieces: list[TokenPiece]


class DetokenizedReply(Reply):
    """The text of tokens."""

    prompt: str
