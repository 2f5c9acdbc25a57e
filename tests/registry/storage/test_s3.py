"""The S3 store when the store is gone, slow, full or closed; and removals that meet uploads.

What holds of every store is in `test_objects.py`; what moto's server lacks, in `s3_server.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.errors import InsufficientStorage, InvalidPrefix, PolyprefixError, Unavailable
from app.model.frozen import FrozenModel
from app.prefix.codec import decode, encode
from app.prefix.prefix import Prefix
from app.registry.open_registry import open_store
from app.registry.storage.store import ObjectStore
from tests.registry.stores import DIGEST, OWNER, S3Handles, get, put, temps
from tests.s3_server import Fault, Proxy, S3Server
from tests.tiny import random_prefix

BOUND_S = 2.0

USES: dict[str, Callable[[ObjectStore], object]] = {
    "commit": lambda store: put(store, b"content"),
    "size": lambda store: store.size(OWNER, DIGEST),
    "open": get,
    "start": lambda store: store.start(OWNER, DIGEST, 8),
    "delete": lambda store: store.delete(OWNER, DIGEST),
    "objects": lambda store: list(store.objects(OWNER)),
}
EACH_USE = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    proxy = Proxy(s3)
    yield proxy
    proxy.close()


@pytest.fixture
def handles(s3: S3Server, proxy: Proxy, tmp_path: Path) -> S3Handles:
    """A store that is reached through the proxy and gives up soon, with one content."""
    handles = S3Handles(s3, tmp_path, proxy.port, timeout_s=BOUND_S)
    put(handles.store, b"content")
    proxy.requests.clear()
    return handles


def fails_within(seconds: float, use: Callable[[ObjectStore], object], store: ObjectStore) -> str:
    """The message with which a use becomes Unavailable in time."""
    begun = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        use(store)
    assert time.monotonic() - begun < seconds
    return caught.value.message


class TestFaults:
    @EACH_USE
    def test_a_frozen_server_is_unavailable_in_time_and_then_as_before(
        self, s3: S3Server, tmp_path: Path, use: Callable[[ObjectStore], object]
    ) -> None:
        handles = S3Handles(s3, tmp_path, timeout_s=BOUND_S)
        put(handles.store, b"content")
        s3.freeze()
        try:
            message = fails_within(BOUND_S + 1, use, handles.store)
        finally:
            s3.thaw()
        assert handles.bucket in message
        within(3.0, handles.store)
        put(handles.store, b"content")
        assert get(handles.store) == b"content"
        assert temps(handles.scratch) == []

    @EACH_USE
    def test_a_server_that_is_gone_is_unavailable_at_once(
        self, handles: S3Handles, proxy: Proxy, use: Callable[[ObjectStore], object]
    ) -> None:
        proxy.close()
        fails_within(BOUND_S, use, handles.another())

    @pytest.mark.usefixtures("s3")
    def test_a_killed_server_is_used_again_once_it_is_back(self, tmp_path: Path) -> None:
        server = S3Server(tmp_path)
        server.start()
        try:
            handles = S3Handles(server, tmp_path, timeout_s=BOUND_S)
            put(handles.store, b"content")
            server.stop()
            fails_within(BOUND_S, USES["size"], handles.store)
            server.start()
            server.request("PUT", f"/{handles.bucket}")
            within(3.0, handles.store)
            put(handles.store, b"content")
            assert get(handles.store) == b"content"
        finally:
            server.stop()

    @EACH_USE
    @pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError")])
    def test_a_server_that_is_overloaded_is_asked_again_and_then_unavailable(
        self,
        handles: S3Handles,
        proxy: Proxy,
        use: Callable[[ObjectStore], object],
        status: int,
        code: str,
    ) -> None:
        proxy.fault = lambda _method, _path: Fault(status=status, code=code)
        fails_within(BOUND_S + 1, use, handles.store)
        asked = [path for _, path in proxy.requests if not path.endswith(".probe")]
        assert 3 <= len(asked) <= 5
        refused = iter([True, False, True])
        proxy.fault = lambda _method, _path: Fault(status=503) if next(refused, False) else None
        within(3.0, handles.store)
        use(handles.store)

    def test_a_slow_server_is_waited_for_within_the_bound(
        self, handles: S3Handles, proxy: Proxy
    ) -> None:
        proxy.fault = lambda _method, _path: Fault(delay_s=0.2 * BOUND_S)
        assert get(handles.store) == b"content"
        proxy.fault = lambda _method, _path: Fault(delay_s=2 * BOUND_S)
        fails_within(BOUND_S + 1, USES["size"], handles.store)

    @EACH_USE
    def test_refused_access_names_the_bucket_and_no_secret(
        self, handles: S3Handles, proxy: Proxy, use: Callable[[ObjectStore], object]
    ) -> None:
        proxy.fault = lambda _method, _path: Fault(status=403, code="AccessDenied")
        with pytest.raises(PolyprefixError) as caught:
            use(handles.store)
        assert not isinstance(caught.value, Unavailable)
        assert f"access to bucket '{handles.bucket}' is refused" in caught.value.message
        for hidden in ("a-secret", "127.0.0.1", OWNER, DIGEST):
            assert hidden not in caught.value.message

    @pytest.mark.parametrize(
        ("status", "code"), [(507, "XMinioStorageFull"), (403, "QuotaExceeded")]
    )
    def test_a_full_store_is_out_of_space(
        self, handles: S3Handles, proxy: Proxy, status: int, code: str
    ) -> None:
        def full(method: str, _path: str) -> Fault | None:
            return Fault(status=status, code=code) if method == "PUT" else None

        proxy.fault = full
        with pytest.raises(InsufficientStorage, match=code):
            put(handles.store, b"another")
        assert get(handles.store) == b"content"
        assert temps(handles.scratch) == []

    def test_a_bucket_that_does_not_exist_is_told_at_start(
        self, s3: S3Server, tmp_path: Path
    ) -> None:
        with pytest.raises(PolyprefixError, match="there is no bucket 'nowhere'"):
            open_store(s3.url("nowhere"), tmp_path)
        handles = S3Handles(s3, tmp_path)
        s3.request("DELETE", f"/{handles.bucket}")
        for use in ("commit", "open", "objects"):
            with pytest.raises(PolyprefixError, match="there is no bucket"):
                USES[use](handles.store)

    def test_a_bucket_that_may_not_be_written_is_told_at_start(
        self, s3: S3Server, proxy: Proxy, tmp_path: Path
    ) -> None:
        def read_only(method: str, _path: str) -> Fault | None:
            return Fault(status=403, code="AccessDenied") if method == "PUT" else None

        proxy.fault = read_only
        with pytest.raises(PolyprefixError, match="is refused"):
            open_store(s3.url(s3.new_bucket(), port=proxy.port), tmp_path)

    def test_an_answer_that_is_cut_short_is_asked_for_again_and_else_no_content(
        self, handles: S3Handles, proxy: Proxy
    ) -> None:
        content = bytes(range(250)) * 1000
        put(handles.store, content)
        proxy.fault = lambda _method, _path: Fault(cut_at=100_000)
        assert get(handles.store) == content
        proxy.fault = lambda _method, _path: Fault(cut_at=0)
        fails_within(BOUND_S + 1, USES["open"], handles.store)
        assert temps(handles.scratch) == []

    def test_a_big_upload_that_stands_still_leaves_what_was_there(
        self, handles: S3Handles, proxy: Proxy
    ) -> None:
        held = threading.Event()

        def second_part_stands_still(_method: str, path: str) -> Fault | None:
            return Fault(held=held) if "partNumber=2" in path else None

        proxy.fault = second_part_stands_still
        fails_within(BOUND_S + 2, lambda store: put(store, bytes(11 << 20)), handles.store)
        held.set()
        within(3.0, handles.store)
        assert get(handles.store) == b"content"


class TestLoading:
    """A file from a bucket is as unread as an upload."""

    def load(self, store: ObjectStore, model: FrozenModel, digest: str) -> Prefix:
        with store.local(OWNER, digest) as path:
            assert path is not None
            return decode(path, model.spec, model.dtype, max_length=16, expect_digest=digest)

    def test_what_was_altered_or_cut_in_the_bucket_is_noticed_and_repaired(
        self, handles: S3Handles, tiny_gpt2: FrozenModel
    ) -> None:
        prefix = random_prefix(tiny_gpt2, 4)
        file = encode(prefix)
        put(handles.store, file, digest=prefix.digest)
        assert self.load(handles.store, tiny_gpt2, prefix.digest).digest == prefix.digest
        altered = file[:-1] + bytes([file[-1] ^ 1])
        another = encode(random_prefix(tiny_gpt2, 4, seed=1))
        for damaged in (altered, file[:-1], file[: len(file) // 2], b"", another):
            handles.plant(f"{OWNER}/{prefix.digest}.safetensors", damaged)
            with pytest.raises(InvalidPrefix):
                self.load(handles.store, tiny_gpt2, prefix.digest)
            put(handles.store, file, digest=prefix.digest)
            assert self.load(handles.store, tiny_gpt2, prefix.digest).digest == prefix.digest


class TestPages:
    def test_a_listing_asks_for_a_page_when_it_is_needed(
        self, handles: S3Handles, proxy: Proxy
    ) -> None:
        for number in range(1005):
            handles.plant(f"{OWNER}/{number:064x}.safetensors", b"")
        listing = handles.store.objects(OWNER)
        next(listing)
        asked = [path for _, path in proxy.requests if "list-type" in path]
        assert len(asked) == 1
        assert len(list(listing)) == 1005


class TestOutage:
    """After one caller has waited, others are refused at once, until the store answers."""

    def test_while_the_store_does_not_answer_others_are_refused_at_once(
        self, s3: S3Server, tmp_path: Path
    ) -> None:
        handles = S3Handles(s3, tmp_path, timeout_s=BOUND_S)
        put(handles.store, b"content")
        s3.freeze()
        try:
            fails_within(BOUND_S + 1, USES["size"], handles.store)
            for _ in range(5):
                for use in USES.values():
                    fails_within(0.2, use, handles.store)
                time.sleep(0.3)
        finally:
            s3.thaw()
        within(3.0, handles.store)

    def test_a_server_that_was_killed_is_found_again(self, tmp_path: Path, s3: S3Server) -> None:
        del s3  # its credentials are needed
        server = S3Server(tmp_path)
        server.start()
        try:
            handles = S3Handles(server, tmp_path, timeout_s=BOUND_S)
            server.stop()
            fails_within(BOUND_S, USES["size"], handles.store)
            server.start()
            server.request("PUT", f"/{handles.bucket}")
            within(3.0, handles.store)
        finally:
            server.stop()

    def test_a_store_that_became_slow_is_used_again(self, handles: S3Handles, proxy: Proxy) -> None:
        """A short probe would never end the outage."""
        proxy.fault = lambda _method, _path: Fault(delay_s=2 * BOUND_S)
        patient = S3Handles(handles.server, handles.folder, proxy.port, timeout_s=4.0)
        fails_within(5.0, USES["size"], patient.store)
        proxy.fault = lambda _method, _path: Fault(delay_s=1.3)
        within(15.0, patient.store)

    def test_a_refusal_of_access_is_no_outage(self, handles: S3Handles, proxy: Proxy) -> None:
        proxy.fault = lambda _method, _path: Fault(status=403, code="AccessDenied")
        for _ in range(2):
            with pytest.raises(PolyprefixError, match="is refused"):
                handles.store.size(OWNER, DIGEST)

    def test_a_store_that_is_closed_is_looked_after_no_longer(
        self, handles: S3Handles, proxy: Proxy
    ) -> None:
        proxy.fault = lambda _method, _path: Fault(status=503)
        fails_within(BOUND_S + 1, USES["size"], handles.store)
        handles.store.close()
        time.sleep(0.2)
        proxy.requests.clear()
        time.sleep(1.2)
        assert proxy.requests == []


class TestRemovals:
    """Of two requests the first might be carried out after the answer to the second."""

    @pytest.mark.parametrize("fault", [Fault(status=503), Fault(delay_s=2 * BOUND_S)])
    def test_a_removal_is_asked_for_once(
        self, handles: S3Handles, proxy: Proxy, fault: Fault
    ) -> None:
        proxy.fault = lambda method, _path: fault if method == "DELETE" else None
        fails_within(BOUND_S + 1, USES["delete"], handles.store)
        assert [method for method, _ in proxy.requests].count("DELETE") == 1


def within(seconds: float, store: ObjectStore) -> None:
    """The store is used again in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            store.size(OWNER, DIGEST)
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return
