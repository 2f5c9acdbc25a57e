"""Large contents as JSON: what the library would write, in pieces that are short."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.schemas.base import _pieces, encode_json

TEXT = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT | st.floats(allow_nan=False, width=16),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


@settings(max_examples=200, derandomize=True, database=None)
@given(VALUES.filter(lambda value: "inf" not in repr(value)))
def test_it_is_what_the_library_writes(value: object) -> None:
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert encode_json(value) == written.encode()


def test_long_lists_are_written_in_short_pieces() -> None:
    logprobs = {"tokens": ["a"] * 5000, "top": [{"a": -0.5, "b": -1.5}] * 5000}
    content = {"choices": [{"index": index, "logprobs": logprobs} for index in range(4)]}
    pieces = list(_pieces(content))
    assert max(map(len, pieces)) < 4096
    assert json.loads(b"".join(pieces)) == content
