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
from app.registry.location import S3Location, parse_location
from app.registry.objects import ObjectStore
from app.registry.opening import open_store
from app.registry.s3 import S3Store
from tests.registry.stores import DIGEST, OWNER, S3Handles, get, put, temps
from tests.s3_server import Fault, Proxy, S3Server
from tests.tiny import random_prefix

BOUND_S = 2.0
CONTENT = f"{OWNER}/{DIGEST}.safetensors"
GRACE_S = 60.0

USES: dict[str, Callable[[ObjectStore], object]] = {
    "commit": lambda store: put(store, b"content"),
    "size": lambda store: store.size(OWNER, DIGEST),
    "open": get,
    "start": lambda store: store.start(OWNER, DIGEST, 8),
    "touch": lambda store: store.touch(OWNER, DIGEST),
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
        assert 3 <= len(proxy.requests) <= 5
        refused = iter([True, False, True])
        proxy.fault = lambda _method, _path: Fault(status=503) if next(refused, False) else None
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


class TestClock:
    @pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
    def test_ages_are_by_the_stores_clock(
        self, s3: S3Server, handles: S3Handles, ahead_s: float
    ) -> None:
        before = s3.ahead_s
        s3.set_clock(before + ahead_s)
        try:
            put(handles.store, b"content")
            [found] = handles.store.objects(OWNER)
            assert found.age_s < 30
            assert not handles.store.delete(OWNER, DIGEST, older_than_s=GRACE_S)
        finally:
            s3.set_clock(before)

    def test_the_clock_is_asked_for_once_in_a_while(
        self, s3: S3Server, handles: S3Handles, proxy: Proxy, tmp_path: Path
    ) -> None:
        location = parse_location(s3.url(handles.bucket, "some/where", proxy.port))
        assert isinstance(location, S3Location)
        store = S3Store(location, tmp_path / "scratch")
        for _ in range(3):
            list(store.objects(OWNER))
        assert sum(method == "PUT" for method, _ in proxy.requests) == 1


class TestRemovals:
    """A removal whose request is carried out late must not take what was uploaded since."""

    def lose(self, handles: S3Handles, proxy: Proxy) -> Fault:
        """Begins a removal whose request is held up on the way, and gives it up."""
        fault = Fault(held=threading.Event())

        def hold(method: str, path: str) -> Fault | None:
            return fault if method == "DELETE" and path.endswith(CONTENT) else None

        proxy.fault = hold
        handles.get_older(GRACE_S)
        fails_within(
            BOUND_S + 1,
            lambda store: store.delete(OWNER, DIGEST, older_than_s=GRACE_S),
            handles.store,
        )
        proxy.fault = lambda _method, _path: None
        return fault

    def carry_out(self, fault: Fault) -> None:
        assert fault.held is not None
        fault.held.set()
        assert fault.carried_out.wait(10)

    def test_an_upload_is_refused_while_a_removal_may_be_under_way(
        self, handles: S3Handles, proxy: Proxy
    ) -> None:
        fault = self.lose(handles, proxy)
        assert handles.store.size(OWNER, DIGEST) is None
        with pytest.raises(Unavailable, match="being removed"):
            put(handles.another(), b"content")
        self.carry_out(fault)
        assert get(handles.store) is None
        with pytest.raises(Unavailable, match="being removed"):
            put(handles.store, b"content")
        handles.get_older(30 * 60)
        put(handles.store, b"content")
        assert handles.store.size(OWNER, DIGEST) == 7

    def test_what_a_cut_removal_leaves_is_cleared_away_when_it_has_no_use(
        self, handles: S3Handles, proxy: Proxy
    ) -> None:
        handles.store.touch(OWNER, DIGEST)
        self.carry_out(self.lose(handles, proxy))
        [left] = handles.store.objects(OWNER)
        assert (left.digest, left.nbytes) == (DIGEST, 0)
        assert not handles.store.delete(OWNER, DIGEST)
        assert handles.stored() == [f"{OWNER}/{DIGEST}.removing"]
        handles.get_older(30 * 60)
        assert not handles.store.delete(OWNER, DIGEST)
        assert handles.stored() == []

    def test_a_second_removal_does_not_lift_the_mark_of_the_first(
        self, handles: S3Handles, proxy: Proxy
    ) -> None:
        fault = self.lose(handles, proxy)
        assert handles.store.delete(OWNER, DIGEST, older_than_s=0)
        with pytest.raises(Unavailable, match="being removed"):
            put(handles.store, b"content")
        self.carry_out(fault)

    def test_an_upload_between_a_removals_looks_saves_the_content(
        self, handles: S3Handles, proxy: Proxy
    ) -> None:
        """The upload is whole before the mark is made, so the second look sees that it is new."""
        handles.get_older(GRACE_S)
        other = handles.another()

        def upload_before_the_mark(method: str, path: str) -> None:
            if method == "PUT" and path.endswith(".removing"):
                proxy.fault = lambda _method, _path: None
                put(other, b"content")

        proxy.fault = upload_before_the_mark
        assert not handles.store.delete(OWNER, DIGEST, older_than_s=GRACE_S)
        assert get(handles.store) == b"content"
        assert handles.stored() == [CONTENT]

    def test_an_upload_after_the_mark_is_refused(self, handles: S3Handles, proxy: Proxy) -> None:
        """The second look is before the upload, whose own look at the mark comes after."""
        handles.get_older(GRACE_S)
        other = handles.another()
        outcomes: list[BaseException] = []

        def upload_before_the_removal(method: str, path: str) -> None:
            if method == "DELETE" and path.endswith(CONTENT):
                proxy.fault = lambda _method, _path: None
                try:
                    put(other, b"content")
                except Unavailable as fault:
                    outcomes.append(fault)

        proxy.fault = upload_before_the_removal
        assert handles.store.delete(OWNER, DIGEST, older_than_s=GRACE_S)
        assert len(outcomes) == 1
        assert get(handles.store) is None
        assert handles.stored() == []
