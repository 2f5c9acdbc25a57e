"""Every error that a user can meet, with the HTTP status and the code that stand for it.

    PolyprefixError                 500 internal_error
    ├── InvalidRequest              400 invalid_value
    │   └── ContextLengthExceeded   400 context_length_exceeded
    ├── InvalidKey                  401 invalid_api_key
    ├── InsufficientScope           403 insufficient_scope
    ├── NotFound                    404 not_found
    │   └── PrefixNotFound          404 prefix_not_found
    ├── MethodNotAllowed            405 method_not_allowed
    ├── Conflict                    409 conflict
    │   ├── BaseModelMismatch       409 base_model_mismatch
    │   ├── NotUsableInDtype        409 not_usable_in_dtype
    │   ├── InUse                   409 in_use
    │   ├── GateNotPassed           409 gate_not_passed
    │   └── QuotaExceeded           409 quota_exceeded
    ├── PreconditionFailed          412 precondition_failed
    ├── FileTooLarge                413 file_too_large
    ├── UnsupportedMediaType        415 unsupported_media_type
    ├── Unprocessable               422 invalid_request
    │   └── InvalidPrefix           422 invalid_prefix
    │       └── PrefixOverflows     422 invalid_prefix
    ├── RateLimited                 429 rate_limit_exceeded
    │   └── TenantQueueFull         429 tenant_queue_full
    ├── RequestCancelled            499 cancelled
    ├── GenerationFault             500 generation_fault
    ├── Unavailable                 503 unavailable
    │   ├── Overloaded              503 overloaded
    │   ├── Draining                503 draining
    │   └── EngineStopped           503 engine_stopped
    ├── DeadlineExceeded            504 deadline_exceeded
    ├── InsufficientStorage         507 insufficient_storage
    └── UnsupportedModel            500 unsupported_model   (refuses to start; never over HTTP)

Errors are raised low; app/api/errors.py maps them to a response once.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class PolyprefixError(Exception):
    """Base of the tree. `message` says what is wrong and where; `param` names the field."""

    status = 500
    code = "internal_error"
    retry_after: float | None = None
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(PolyprefixError):
    """A request that is understood and impossible."""

    status, code = 400, "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """Prefix offset, prompt and new tokens do not fit the model's positions."""

    code = "context_length_exceeded"


class InvalidKey(PolyprefixError):
    """No API key, or not one that is valid now: which of them is not said."""

    status, code = 401, "invalid_api_key"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class InsufficientScope(PolyprefixError):
    """The API key is valid and does not allow this; the message names the scope."""

    status, code = 403, "insufficient_scope"


class NotFound(PolyprefixError):
    """No such thing, or not the caller's: the two are indistinguishable."""

    status, code = 404, "not_found"


class PrefixNotFound(NotFound):
    """The name of a prefix, alias or version does not resolve."""

    code = "prefix_not_found"


class MethodNotAllowed(PolyprefixError):
    """The path is a route's, and the method is not; the `Allow` header names those that are."""

    status, code = 405, "method_not_allowed"


class Conflict(PolyprefixError):
    """The request contradicts the present state."""

    status, code = 409, "conflict"


class BaseModelMismatch(Conflict):
    """The prefix was trained on another base model than the one that is served."""

    code = "base_model_mismatch"


class NotUsableInDtype(Conflict):
    """A version that holds values which the dtype that this server computes in does not have."""

    code = "not_usable_in_dtype"


class InUse(Conflict):
    """What is to be deleted is still referred to."""

    code = "in_use"


class GateNotPassed(Conflict):
    """A version scores less than an alias demands; the message has the score and the bound."""

    code = "gate_not_passed"


class QuotaExceeded(Conflict):
    """The tenant stores as much as it may; the message names the quota and what is used."""

    code = "quota_exceeded"


class PreconditionFailed(PolyprefixError):
    """`If-Match` names another state than the present one."""

    status, code = 412, "precondition_failed"


class FileTooLarge(PolyprefixError):
    """A body or file exceeds its limit."""

    status, code = 413, "file_too_large"


class UnsupportedMediaType(PolyprefixError):
    """The body's content type or encoding is not accepted here."""

    status, code = 415, "unsupported_media_type"


class Unprocessable(PolyprefixError):
    """The body does not have the shape that the route expects."""

    status, code = 422, "invalid_request"


class InvalidPrefix(Unprocessable):
    """A prefix file breaks a rule of the format; the message names the rule and the tensor."""

    code = "invalid_prefix"


class PrefixOverflows(InvalidPrefix):
    """Values that are finite in the file overflow in the dtype that is served."""


class RateLimited(PolyprefixError):
    """A limit of this tenant is used up.

    `retry_after` is in seconds (None: waiting does not help); `headers` go with the response and
    say where the limits stand.
    """

    status, code = 429, "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = 1.0,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.retry_after = retry_after
        self.headers = dict(headers or {})


class TenantQueueFull(RateLimited):
    """As many requests of this tenant wait as may."""

    code = "tenant_queue_full"


class PrefixErased(PolyprefixError):
    """A prefix of the request was erased, as its user's, while the request ran."""

    status, code = 404, "prefix_erased"


class RequestCancelled(PolyprefixError):
    """The client went away or gave the request up; nobody reads this answer."""

    status, code = 499, "cancelled"


class GenerationFault(PolyprefixError):
    """One row failed while it was generated; no other request is concerned."""

    code = "generation_fault"


class Unavailable(PolyprefixError):
    """The server cannot take the request now; `retry_after` is in seconds."""

    status, code = 503, "unavailable"
    retry_after = 1.0


class Overloaded(Unavailable):
    """The server's queue is full."""

    code = "overloaded"


class Draining(Unavailable):
    """The server is shutting down and finishes what it has begun."""

    code = "draining"
    retry_after = 5.0


class EngineStopped(Unavailable):
    """The engine's loop has ended; the process is about to be replaced."""

    code = "engine_stopped"
    retry_after = 5.0


class DeadlineExceeded(PolyprefixError):
    """The request's own `timeout`, or the server's, has passed."""

    status, code = 504, "deadline_exceeded"


class InsufficientStorage(PolyprefixError):
    """The store or the catalog cannot take more; generation goes on."""

    status, code = 507, "insufficient_storage"


class UnsupportedModel(PolyprefixError):
    """The base model needs something that this server does not do; it does not start."""

    code = "unsupported_model"
