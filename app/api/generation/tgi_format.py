"""What TGI's routes answer: one text with its details, whole or an event per token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from app.api.generation.generation import Generation
from app.api.generation.openai_format import PromptReply, RowReply
from app.api.generation.sse import write_event
from app.api.schemas.generation import GenerateBody
from app.engine.request import FinishReason, RowFinished, TextDelta, TokenScore
from app.model.text import Text

_NO_TOKEN = TokenScore(0, "", 0.0)


class GenerateReply:
    """Collects one generation and shapes it as TGI does."""

    def __init__(self, body: GenerateBody, generation: Generation, text: Text) -> None:
        self._generation = generation
        self._parameters = body.parameters
        self._inputs = body.inputs if body.parameters.return_full_text else ""
        [self._request] = generation.requests
        self.prompt = PromptReply(self._request)
        self._special_ids = text.special_ids | text.eos_token_ids

    @property
    def size(self) -> int:
        """Tokens that the reply shows."""
        return self.prompt.num_prompt + sum(row.end.num_tokens for row in self.prompt.rows)

    def whole(self) -> dict[str, Any]:
        """The reply that is not streamed."""
        best, *others = sorted(self.prompt.rows, key=lambda row: -row.rank)
        reply: dict[str, Any] = {"generated_text": self._inputs + best.text}
        if self._parameters.details or self._parameters.decoder_input_details:
            reply["details"] = self._details(best)
            if others:
                reply["details"]["best_of_sequences"] = [
                    {"generated_text": self._inputs + row.text} | self._details(row)
                    for row in others
                ]
        return reply

    def _details(self, row: RowReply) -> dict[str, Any]:
        details = {
            **self._totals(row.end),
            "prefill": [_token(score) for score in self.prompt.prompt_scores],
            "tokens": [self._token(score) for score in row.scores],
        }
        if self._parameters.top_n_tokens:
            details["top_tokens"] = [self._top_tokens(score) for score in row.scores]
        return details

    async def parts(self) -> AsyncIterator[bytes]:
        """One event per token; the last one carries the text and the details.

        A row's last token and its end arrive in the same batch.
        """
        text, index = self._inputs, 0
        async for batch in self._generation.events():
            events: list[dict[str, Any]] = []
            for _, item in batch:
                if isinstance(item, TextDelta):
                    text += item.text
                    for score in item.tokens:
                        index += 1
                        shown = item.text if score is item.tokens[-1] else ""
                        events.append(self._stream_event(index, score, shown))
                elif isinstance(item, RowFinished):
                    # a search that bans leave nothing to has a result of no tokens
                    events = events or [self._stream_event(index, _NO_TOKEN, "")]
                    totals = self._totals(item) | {"timings": self._generation.timings.milliseconds}
                    events[-1] |= {"generated_text": text, "details": totals}
            if events:
                yield b"".join(write_event(content) for content in events)

    def _stream_event(self, index: int, score: TokenScore, shown: str) -> dict[str, Any]:
        """A token with the text that it completes: clients join the texts of all but specials."""
        token = self._token(score)
        if shown or not token["special"]:
            token |= {"text": shown, "special": False}
        content = {"index": index, "token": token, "generated_text": None, "details": None}
        if self._parameters.top_n_tokens:
            content["top_tokens"] = self._top_tokens(score)
        return content

    def _totals(self, end: RowFinished) -> dict[str, Any]:
        reason = "length"
        if end.reason is FinishReason.STOP:
            reason = "eos_token" if end.stop_string is None else "stop_sequence"
        return {
            "finish_reason": reason,
            "prompt_tokens": self.prompt.num_prompt,
            "input_length": self.prompt.num_prompt,
            "generated_tokens": end.num_tokens,
            "seed": self._request.sampling.seed,
            **({} if end.score is None else {"beam_score": end.score}),
        }

    def _token(self, score: TokenScore) -> dict[str, Any]:
        return {**_token(score), "special": score.token_id in self._special_ids}

    def _top_tokens(self, score: TokenScore) -> list[dict[str, Any]]:
        """The most probable tokens in the place of this one, best first."""
        return [self._token(TokenScore(*alternative)) for alternative in score.top]


def _token(score: TokenScore) -> dict[str, Any]:
    return {"id": score.token_id, "text": score.text, "logprob": score.logprob}
