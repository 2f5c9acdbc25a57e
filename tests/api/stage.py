"""A server with something behind every described route, and requests that succeed there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.prefix.codec import encode
from app.prefix.prefix import Prefix
from tests.api.guarded import Guarded

BASE = "tiny-gpt2"
EXAMPLES = [{"input": "the", "output": "cat"}, {"input": "a", "output": ["dog", "fox"]}]
LINES = b'{"input": "a", "target": "b"}\n'

_ALIAS = "/v1/prefixes/tone/aliases/calm"

Json = dict[str, Any]


@dataclass
class Stage:
    """The tenant `acme` with two versions of `tone`; what requests take away is put back.

    `shown` holds what stands in paths: `name`, `alias`, `digest`, `tenant_id`, `kid`, `model_id`,
    `file_id`, `job_id`.
    """

    guarded: Guarded
    versions: tuple[Prefix, Prefix]
    shown: dict[str, str] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)

    def set(self) -> None:
        """Make everything that is there at first."""
        self._set_prefix()
        self._set_alias()
        self._set_publication()
        self._set_tenant()
        self._set_file()
        self._set_job()
        self._call("POST", f"/v1/fine_tuning/jobs/{self.shown['job_id']}/cancel")

    def restore(self, operation: str) -> None:
        """Put back what the operation may have taken away."""
        again = {
            "delete_prefix": self.set,
            "delete_model": self.set,
            "delete_version": self._set_prefix,
            "rollback_alias": self._set_alias,
            "set_gate": self._set_gate,
            "remove_gate": self._set_gate,
            "delete_publication": self._set_publication,
            "change_tenant": self._set_tenant,
            "delete_tenant": self._set_tenant,
            "create_key": self._set_tenant,
            "revoke_key": self._set_tenant,
            "delete_file": self._set_file,
            "cancel_job": self._set_job,
            "pause_job": self._set_job,
            "resume_job": self._set_job,
        }
        if operation in again:
            again[operation]()

    def _set_prefix(self) -> None:
        """Two versions, and one that no alias but `latest` and no job needs."""
        key = self.guarded.key()
        self._cancel_jobs()
        replies = [self.guarded.push("tone", version, key) for version in self.versions]
        self.digests = [reply.json()["digest"] for reply in replies]
        made = self._call("POST", "/v1/prefixes/tone/from-text", {"text": "the cat"})
        self.shown |= {"name": "tone", "model_id": "tone", "digest": made["digest"]}

    def _set_alias(self) -> None:
        """An alias that has been moved."""
        self._call("DELETE", f"{_ALIAS}/gate")
        for digest in self.digests:
            self._call("PUT", _ALIAS, {"version": digest})
        self.shown["alias"] = "calm"
        self._set_gate()

    def _set_gate(self) -> None:
        gate = {"metric": "mean_logprob", "min_score": -1e5, "examples": EXAMPLES}
        self._call("PUT", f"{_ALIAS}/gate", gate)

    def _set_publication(self) -> None:
        self._call("PUT", "/v1/prefixes/tone/publication", {"tenants": ["rival"]})

    def _set_tenant(self) -> None:
        """A tenant as if it was new, with one key."""
        self._call("DELETE", "/admin/tenants/another")
        self._call("DELETE", "/admin/tenants/guest")
        self._call("POST", "/admin/tenants", {"id": "guest"})
        made = self._call("POST", "/admin/tenants/guest/keys", {})
        self.shown |= {"tenant_id": "guest", "kid": made["kid"], "user": "ann"}

    def _set_file(self) -> None:
        """A file that no job needs."""
        with self.guarded.client(self.guarded.key()) as client:
            form = {"purpose": "fine-tune"}
            made = client.post("/v1/files", data=form, files={"file": ("a.jsonl", LINES)})
        self.shown["file_id"] = made.json()["id"]

    def _set_job(self) -> None:
        """A job that waits."""
        body = {"model": BASE, "training_file": self.shown["file_id"]}
        self.shown["job_id"] = self._call("POST", "/v1/fine_tuning/jobs", body)["id"]
        self._set_file()

    def _cancel_jobs(self) -> None:
        """No job needs anything any more."""
        for job in self._call("GET", "/v1/fine_tuning/jobs?limit=100")["data"]:
            if job["finished_at"] is None:
                self._call("POST", f"/v1/fine_tuning/jobs/{job['id']}/cancel")

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        with self.guarded.client(self.guarded.key()) as client:
            reply = client.request(method, path, json=body)
        assert method == "DELETE" or reply.status_code < 300, (method, path, reply.text)
        content: Json = reply.json()
        return content

    @property
    def file(self) -> bytes:
        """A prefix file."""
        return encode(self.versions[0])

    def bodies(self, operation: str) -> list[Any]:
        """Bodies with which the operation succeeds; `[None]` if it takes none."""
        one, two = self.digests
        judged = {"examples": EXAMPLES, "max_tokens": 2}
        known: dict[str, list[Any]] = {
            "create_completion": _completions(),
            "generate": _generations(),
            "generate_stream": [{**body, "stream": True} for body in _generations()[:3]],
            "compat_generate": [
                {**body, "stream": stream}
                for body in _generations()[:3]
                for stream in (False, True)
            ],
            "tokenize": [{"inputs": "the cat"}, {"prompt": "the", "model": "tone@calm"}],
            "detokenize": [{"tokens": [5, 6, 7]}],
            "upload_version": [self.file],
            "make_from_text": [{"text": "the quick fox"}, {"text": "the cat", "alias": "words"}],
            "set_alias": [{"version": one}, {"split": {one: 3, two: 1}}],
            "set_gate": [{"metric": "exact_match", "min_score": 0, "examples": EXAMPLES}],
            "set_publication": [{"tenants": ["rival"]}, {"everyone": True}],
            "evaluate_version": [judged, {**judged, "version": "calm", "metrics": ["loss"]}],
            "compare_versions": [
                {
                    "a": one,
                    "b": two,
                    "examples": [{"input": "the"}, {"input": "a", "output": "b"}],
                    "max_tokens": 2,
                }
            ],
            "create_tenant": [{"id": "another", "limits": {"weight": 2.0, "max_rows": 9}}],
            "change_tenant": [{"limits": {"max_queue": 4}, "disabled": True}, {"disabled": False}],
            "upload_file": [{"file": LINES, "purpose": "fine-tune"}],
            "create_job": [
                {"model": BASE, "training_file": self.shown["file_id"]},
                {
                    "model": BASE,
                    "training_file": self.shown["file_id"],
                    "method": {"type": "prefix", "prefix": {"hyperparameters": {"length": 4}}},
                    "on": "tone",
                    "metadata": {"a": "b"},
                },
            ],
            "create_key": [{"scopes": ["generate"], "label": "a label", "expires_at": 2**33}],
        }
        return known.get(operation, [None])


def _completions() -> list[Json]:
    plain = {"model": BASE, "prompt": "the", "max_tokens": 2}
    return [
        plain,
        {**plain, "model": "tone@calm", "logprobs": 2, "echo": True, "n": 2},
        {**plain, "model": "tone+tone", "stop": ["a"], "prompt": [[5, 6], [7]], "logprobs": 0},
        {**plain, "num_beams": 2, "n": 2},
        {**plain, "stream": True, "stream_options": {"include_usage": True}},
    ]


def _generations() -> list[Json]:
    plain = {"max_new_tokens": 2, "adapter_id": "tone"}
    scored = {**plain, "details": True, "decoder_input_details": True}
    return [
        {"inputs": "the", "parameters": plain},
        {"inputs": "the", "parameters": {**plain, "details": True, "seed": 4, "do_sample": True}},
        {"inputs": "the", "parameters": {**plain, "details": True, "top_n_tokens": 2}},
        {"inputs": "the", "parameters": {**scored, "best_of": 2, "do_sample": True}},
        {"inputs": "the", "parameters": {**plain, "details": True, "num_beams": 2}},
    ]
