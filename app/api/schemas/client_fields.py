"""Fields that clients of other servers send, and that this server does not have.

A field is ignored only if that cannot change the text that its sender expects. What would change
it is taken with the values that ask for nothing, and refused with any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IGNORED = frozenset(
    {
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "cache_salt",
        "request_id",
    }
)
"""Bookkeeping of OpenAI's and vLLM's clients, and hints to caches."""

_FORMS = "structured_outputs grammar guided_json guided_regex guided_choice guided_grammar"
_ADAPTER = "name the prefix in model"
_PLAIN_TEXT = "the form of the output cannot be constrained here"
_NO_CHAT = "there is no chat here: write the conversation into prompt"


def _each(names: str, *values: Any) -> dict[str, tuple[Any, ...]]:
    return dict.fromkeys(names.split(), values)


NEUTRAL_COMPLETION: Mapping[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "typical_p": (1,),
    "modalities": (["text"],),
    **_each("tool_choice function_call", "none", "auto"),
    **_each("skip_special_tokens spaces_between_special_tokens", True),
    **_each("use_beam_search ignore_eos watermark include_stop_str_in_output", False),
    **_each("return_token_ids return_tokens_as_token_ids", False),
    **_each("stop_token_ids bad_words logits_processors tools functions", []),
    **_each("allowed_token_ids truncate_prompt_tokens prompt_logprobs top_logprobs"),
    **_each("guided_decoding_backend guided_whitespace_pattern kv_transfer_params"),
    **_each("adapter_id lora_request"),
    **_each(_FORMS),
}
"""Of `/v1/completions`: OpenAI's chat fields, vLLM's, TGI's and LoRAX's."""

REFUSED_COMPLETION: Mapping[str, str] = {
    **dict.fromkeys(("response_format", *_FORMS.split()), _PLAIN_TEXT),
    "stop_token_ids": "give the text of the tokens as stop",
    "bad_words": "give their token ids a logit_bias of -100",
    "use_beam_search": "give num_beams",
    "ignore_eos": "give min_tokens",
    "truncate_prompt_tokens": "shorten the prompt",
    "prompt_logprobs": "give echo with logprobs",
    "top_logprobs": "give logprobs",
    **dict.fromkeys(("tools", "functions", "messages"), _NO_CHAT),
    **dict.fromkeys(("adapter_id", "lora_request"), _ADAPTER),
    "max_completion_tokens": "give max_tokens",
    "max_new_tokens": "give max_tokens",
    "inputs": "give prompt",
    "parameters": "its fields stand beside prompt here, or use /generate",
    "do_sample": "give temperature; 0 is greedy",
}
"""Of `/v1/completions`: what to do instead."""

IGNORED_PARAMETERS = frozenset({"api_token", "adapter_source"})
"""Of `/generate`: where LoRAX would fetch adapters; here prefixes come from the registry alone."""

NEUTRAL_PARAMETERS: Mapping[str, tuple[Any, ...]] = {
    "apply_chat_template": (False,),
    "skip_special_tokens": (True,),
    "adapter_parameters": (),
    "schema": (),
}
"""Of the `parameters` of `/generate`."""

REFUSED_PARAMETERS: Mapping[str, str] = {
    "max_tokens": "give max_new_tokens",
    "model": "name the prefix in adapter_id",
    "n": "give best_of with details",
    "logprobs": "give details",
    "stop_sequences": "give stop",
    "apply_chat_template": "write the conversation into inputs",
    "stream": "ask /generate_stream",
}
"""Of the `parameters` of `/generate`: what to do instead."""
