"""Which requests search by beams, and what beam search does not do.

A request that asks to sample has no beams unless it names their number itself. Knows nothing about
how beams are searched.
"""

from __future__ import annotations

from app.api.generation.prefix_selection import PrefixSelection
from app.api.schemas.generation import SamplingFields
from app.engine.decoding.beam_search import BeamParams, beam_params
from app.errors import InvalidRequest
from app.model.generation_defaults import GenerationDefaults

_OPTIONS = ("num_beams", "length_penalty", "early_stopping")


def choose_beams(
    fields: SamplingFields,
    choice: PrefixSelection,
    generation: GenerationDefaults,
    *,
    max_tokens: int,
    do_sample: bool = False,
) -> BeamParams | None:
    """How a request searches: as it says, else as its prefix does, else as the model's generation
    config does (whose number of beams does not count); None for one row per result.

    A prefix's default of beams gives way to a request that asks to sample, and to one that wants no
    new tokens. Raises InvalidRequest where a request asks for beams and for sampling.
    """
    sampler = "do_sample" if do_sample else _sampler(fields)
    if fields.num_beams is None and (sampler is not None or max_tokens == 0):
        return None
    given = {name: getattr(fields, name) for name in _OPTIONS}
    asked = {name: value for name, value in given.items() if value is not None}
    beam = beam_params({**generation.decoding, **choice.decoding, **asked})
    if beam is not None and sampler is not None:
        raise InvalidRequest(
            f"{sampler} asks to sample and num_beams {beam.num_beams} to search; give one of the "
            "two",
            param=sampler,
        )
    return beam


def check_results(beam: BeamParams, wanted: int, *, param: str) -> None:
    """Raise InvalidRequest if more results are wanted than beams find."""
    if wanted > beam.num_beams:
        raise InvalidRequest(
            f"{param} is {wanted}, but {beam.num_beams} beams have {beam.num_beams} results at "
            "most: ask for more beams with num_beams, or for none with num_beams 1",
            param=param,
        )


def check_alternatives(wanted: int | None, *, param: str) -> None:
    """Raise InvalidRequest if alternatives to the tokens of a result are wanted."""
    if wanted:
        raise InvalidRequest(
            f"{param} is {wanted}, but beam search reports the log-probabilities of the tokens "
            f"that it chose and no alternatives: ask for {param} 0, or for no beams with num_beams "
            "1",
            param=param,
        )


def _sampler(fields: SamplingFields) -> str | None:
    """The first field by which a request asks to sample; values that change nothing do not."""
    if fields.top_p == 0:  # nothing is drawn
        return None
    asks = {
        "temperature": bool(fields.temperature),
        "top_p": fields.top_p is not None and fields.top_p < 1,
        "top_k": (fields.top_k or 0) > 0,
        "min_p": bool(fields.min_p),
    }
    return next((name for name, asked in asks.items() if asked), None)
