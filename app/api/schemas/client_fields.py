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

_ADAPTER = "name the prefix in model"
_PLAIN_TEXT = "the form of the output cannot be constrained here"
_NO_CHAT = "there is no chat here: write the conversation into prompt"

NEUTRAL_COMPLETION: Mapping[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "grammar": (),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "kv_transfer_params": (),
    "typical_p": (1,),
    "watermark": (False,),
    "top_logprobs": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "adapter_id": (),
    "lora_request": (),
}
"""Of `/v1/completions`: OpenAI's chat fields, vLLM's, TGI's and LoRAX's."""

REFUSED_COMPLETION: Mapping[str, str] = {
    "response_format": _PLAIN_TEXT,
    "structured_outputs": _PLAIN_TEXT,
    "guided_json": _PLAIN_TEXT,
    "guided_regex": _PLAIN_TEXT,
    "guided_choice": _PLAIN_TEXT,
    "guided_grammar": _PLAIN_TEXT,
    "grammar": _PLAIN_TEXT,
    "stop_token_ids": "give the text of the tokens as stop",
    "bad_words": "give their token ids a logit_bias of -100",
    "use_beam_search": "give num_beams",
    "ignore_eos": "give min_tokens",
    "truncate_prompt_tokens": "shorten the prompt",
    "prompt_logprobs": "give echo with logprobs",
    "top_logprobs": "give logprobs",
    "tools": _NO_CHAT,
    "functions": _NO_CHAT,
    "messages": _NO_CHAT,
    "adapter_id": _ADAPTER,
    "lora_request": _ADAPTER,
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
