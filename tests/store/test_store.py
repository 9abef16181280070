"""What a store promises: whole or nothing, one winner, damage noticed, a full disk said plainly."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from mlcloud import errors
from mlcloud.store import CHUNK_BYTES, ChunkRef, Signer, Store, chunks_of, join


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture(params=["file", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "s") if request.param == "file" else f"memory://{tmp_path.name}")


def files(store: Store, below: str) -> list[Path]:
    root = Path(store.url.removeprefix("file://"))
    return sorted(path for path in (root / below).rglob("*") if path.is_file())


class TestChunks:
    def test_what_was_put_comes_back(self, any_store: Store) -> None:
        ref = any_store.put_chunk(b"hello")
        assert ref == ChunkRef(blake3(b"hello").hexdigest(), 5)
        assert ref.new
        assert any_store.get_chunk(ref.hash) == b"hello"
        assert any_store.exists(ref.hash)
        assert not any_store.exists("0" * 64)

    def test_the_same_content_is_stored_once(self, any_store: Store) -> None:
        any_store.put_chunk(b"hello")
        assert not any_store.put_chunk(bytearray(b"hello")).new
        assert any_store.usage().chunks == 1

    def test_a_large_buffer_is_split_and_joined(self, any_store: Store) -> None:
        large = os.urandom(2 * CHUNK_BYTES + 7)
        mixed: list[bytes | memoryview] = [b"a", large, b"", memoryview(b"b")]
        refs = any_store.put_buffers(iter(mixed))
        assert [ref.size for ref in refs] == [1, CHUNK_BYTES, CHUNK_BYTES, 7, 1]
        assert chunks_of(len(large)) == 3
        assert chunks_of(0) == 0
        into = bytearray(len(large))
        any_store.get_buffer(refs[1:4], into)
        assert into == large
        assert bytes(any_store.get_buffer(refs[:1])) == b"a"

    def test_a_chunk_that_is_too_large_is_refused(self, store: Store) -> None:
        with pytest.raises(errors.UsageError, match="put_buffers"):
            store.put_chunk(bytes(CHUNK_BYTES + 1))

    @pytest.mark.parametrize("damage", ["flip", "cut", "grow", "gone"])
    def test_damage_is_noticed_and_healed_by_the_next_writer(
        self, store: Store, damage: str
    ) -> None:
        ref = store.put_chunk(b"precious" * 100)
        (file,) = files(store, "chunks")
        data = bytearray(file.read_bytes())
        if damage == "flip":
            data[17] ^= 1
        file.write_bytes({"cut": data[:-1], "grow": data + b"x"}.get(damage, data))
        if damage == "gone":
            file.unlink()
        with pytest.raises(errors.Damaged, match=ref.hash):
            store.get_chunk(ref.hash)
        with pytest.raises(errors.Damaged, match=ref.hash):
            store.get_buffer([ref])
        assert store.put_chunk(b"precious" * 100).new
        assert store.get_chunk(ref.hash) == b"precious" * 100

    def test_content_that_is_not_what_was_expected_is_not_stored(self, any_store: Store) -> None:
        with pytest.raises(errors.UsageError, match="does not match"):
            any_store.put_chunk(b"hello", expected="0" * 64)
        assert any_store.usage().chunks == 0
        assert any_store.put_chunk(b"hello", expected=blake3(b"hello").hexdigest()).new

    def test_it_says_which_chunks_are_missing(self, any_store: Store) -> None:
        here = any_store.put_chunk(b"here")
        absent = ChunkRef("0" * 64, 4)
        cut_short = ChunkRef(here.hash, 5)
        assert any_store.missing([here, absent, cut_short]) == [absent, cut_short]

    def test_a_chunk_found_damaged_counts_as_missing(self, store: Store) -> None:
        ref = store.put_chunk(b"precious")
        (file,) = files(store, "chunks")
        file.write_bytes(b"grecious")
        assert store.missing([ref]) == []  # nobody has looked inside
        with pytest.raises(errors.Damaged):
            store.get_chunk(ref.hash)
        assert store.missing([ref]) == [ref]

    def test_what_was_put_without_waiting_is_on_the_disk_before_it_is_relied_on(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []
        fsync = os.fsync

        def note(handle: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)

        ref = store.put_chunk(b"first", durable=True)  # makes the folders
        monkeypatch.setattr(os, "fsync", note)
        later = store.put_chunk(b"later", durable=False)
        assert not [path for path in synced if path.endswith(later.hash) or "/store/tmp/" in path]
        assert not store.put_chunk(b"later").new  # a snapshot that names it
        assert [path for path in synced if path.endswith(later.hash)]
        synced.clear()
        store.settle([ref, later])
        assert {path.rpartition("/")[2] for path in synced} >= {ref.hash, later.hash}

    def test_a_writer_killed_in_the_middle_leaves_no_chunk(self, store: Store) -> None:
        script = textwrap.dedent("""
            import os, signal, sys
            from mlcloud.store import Store
            os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
            Store(sys.argv[1]).put_chunk(b"x" * 1000)
        """)
        path = store.url.removeprefix("file://")
        done = subprocess.run([sys.executable, "-c", script, path], env=environment(), check=False)
        assert done.returncode == -9
        assert files(store, "chunks") == []
        assert store.put_chunk(b"x" * 1000).new


class TestManifests:
    def test_commit_and_read(self, any_store: Store) -> None:
        assert any_store.latest("checkpoint", "a/b") is None
        made = any_store.commit("checkpoint", "a/b", 3, {"x": [1, 2.5, None]})
        any_store.commit("checkpoint", "a/b", 12, {})
        any_store.commit("checkpoint", "a", 1, {})
        assert any_store.read("checkpoint", "a/b", 3) == {"x": [1, 2.5, None]}
        assert any_store.manifest("checkpoint", "a/b", 3) == made
        assert any_store.steps("checkpoint", "a/b") == [3, 12]
        assert any_store.steps("checkpoint", "a") == [1]
        assert any_store.latest("checkpoint", "a/b") == 12
        assert any_store.names("checkpoint") == ["a", "a/b"]
        assert any_store.names("snapshot") == []
        with pytest.raises(errors.NoCheckpoint):
            any_store.read("checkpoint", "a/b", 4)

    def test_a_committed_step_is_never_replaced(self, any_store: Store) -> None:
        any_store.commit("checkpoint", "a", 1, {"by": "first"})
        with pytest.raises(errors.StepExists, match="already committed"):
            any_store.commit("checkpoint", "a", 1, {"by": "second"})
        assert any_store.read("checkpoint", "a", 1) == {"by": "first"}

    def test_a_refusal_of_our_own_repeated_request_is_a_success(
        self, any_store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create = any_store._backend.create

        def answer_lost(path: str, data: bytes) -> None:
            create(path, data)
            raise FileExistsError(errno.EEXIST, "the request was repeated")

        monkeypatch.setattr(any_store._backend, "create", answer_lost)
        any_store.commit("checkpoint", "a", 1, {"by": "me"})
        assert any_store.read("checkpoint", "a", 1) == {"by": "me"}

    @pytest.mark.parametrize(
        "name",
        ["", "..", "a/../b", "/a", "a/", "a//b", ".hidden", "a b", "ä", "a/1.json", "x" * 300],
    )
    def test_unsafe_names_are_refused(self, store: Store, name: str) -> None:
        with pytest.raises(errors.UsageError):
            store.commit("checkpoint", name, 1, {})
        with pytest.raises(errors.UsageError):
            store.steps("checkpoint", name)

    @pytest.mark.parametrize("step", [-1, 10**12, 1.5, True])
    def test_steps_out_of_range_are_refused(self, store: Store, step: Any) -> None:
        with pytest.raises(errors.UsageError):
            store.commit("checkpoint", "a", step, {})

    def test_every_flipped_bit_is_noticed(self, store: Store) -> None:
        store.commit("checkpoint", "a", 1, {"lr": 1e-5, "s": "text"}, sign=Signer(b"k" * 32).sign)
        (file,) = files(store, "manifests")
        good = file.read_bytes()
        for i in range(len(good)):
            for bit in (1, 32):
                bad = bytearray(good)
                bad[i] ^= bit
                file.write_bytes(bad)
                with pytest.raises(errors.Damaged):
                    store.read("checkpoint", "a", 1, verify=Signer(b"k" * 32).verify)
        for length in range(len(good)):
            file.write_bytes(good[:length])
            with pytest.raises(errors.Damaged):
                store.read("checkpoint", "a", 1)

    def test_a_manifest_copied_elsewhere_is_noticed(self, store: Store) -> None:
        store.commit("checkpoint", "a", 1, {})
        (file,) = files(store, "manifests")
        file.with_name("000000000002.json").write_bytes(file.read_bytes())
        with pytest.raises(errors.Damaged, match="belongs to"):
            store.read("checkpoint", "a", 2)

    def test_a_newer_format_asks_for_an_upgrade(self, store: Store) -> None:
        store.commit("checkpoint", "a", 1, {})
        (file,) = files(store, "manifests")
        document = json.loads(file.read_bytes())
        del document["blake3"]
        document["format"] = 99

        def spell(value: Any) -> bytes:
            return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

        document["blake3"] = blake3(spell(document)).hexdigest()
        file.write_bytes(spell(document))
        with pytest.raises(errors.StoreError, match="upgrade mlcloud") as caught:
            store.read("checkpoint", "a", 1)
        assert not isinstance(caught.value, errors.Damaged)

    def test_verify_names_what_is_wrong(self, store: Store) -> None:
        refs = store.put_buffers([b"one", b"two"])
        store.commit("checkpoint", "a", 1, {"deep": [{"er": [str(ref) for ref in refs]}]})
        assert store.verify("checkpoint", "a", 1) == []
        files(store, f"chunks/{refs[1].hash[:2]}")[0].unlink()
        (problem,) = store.verify("checkpoint", "a", 1)
        assert refs[1].hash in problem
        assert "missing" in problem

    def test_only_what_the_key_signed_is_read(self, any_store: Store) -> None:
        ours, theirs = Signer(b"o" * 32), Signer(b"t" * 32)
        any_store.commit("snapshot", "s", 1, {"x": 1}, sign=ours.sign)
        any_store.commit("snapshot", "s", 2, {"x": 1}, sign=theirs.sign)
        any_store.commit("snapshot", "s", 3, {"x": 1})
        assert any_store.read("snapshot", "s", 1, verify=ours.verify) == {"x": 1}
        assert any_store.read("snapshot", "s", 1) == {"x": 1}
        for step in (2, 3):
            with pytest.raises(errors.Damaged, match="not signed"):
                any_store.read("snapshot", "s", step, verify=ours.verify)


class TestRaces:
    def test_sixteen_threads_have_one_winner(self, any_store: Store) -> None:
        won: list[int] = []
        refused: list[int] = []
        start = threading.Barrier(16)

        def race(me: int) -> None:
            start.wait()
            try:
                any_store.commit("checkpoint", "race", 7, {"by": me})
                won.append(me)
            except errors.StepExists:
                refused.append(me)

        threads = [threading.Thread(target=race, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert len(refused) == 15
        assert any_store.read("checkpoint", "race", 7) == {"by": won[0]}

    def test_sixteen_processes_have_one_winner_each_round(self, store: Store) -> None:
        script = textwrap.dedent("""
            import os, sys
            from mlcloud import errors
            from mlcloud.store import Store
            store = Store(sys.argv[1])
            for step in range(10):
                go, gun = os.pipe()
                children = []
                for me in range(16):
                    pid = os.fork()
                    if pid:
                        children.append(pid)
                        continue
                    os.close(gun)
                    os.read(go, 1)  # returns for all at once, when the parent closes its end
                    try:
                        store.commit("checkpoint", "race", step, {"by": me})
                        os._exit(0)
                    except errors.StepExists:
                        os._exit(3)
                    except BaseException:
                        os._exit(1)
                os.close(gun)
                os.close(go)
                codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
                assert sorted(codes) == [0] + 15 * [3], codes
                assert store.read("checkpoint", "race", step) == {"by": codes.index(0)}
        """)
        path = store.url.removeprefix("file://")
        subprocess.run([sys.executable, "-c", script, path], env=environment(), check=True)
        assert store.steps("checkpoint", "race") == list(range(10))
        assert files(store, "tmp") == []


class TestFull:
    @pytest.fixture
    def tiny(self, tmp_path: Path) -> Iterator[Path]:
        """A real filesystem of 1 MiB."""
        folder = tmp_path / "tiny"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        try:
            mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            mounted = False
        if not mounted:
            pytest.skip("mounting a small filesystem needs root")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)

    def test_a_full_disk_is_said_and_harms_nothing(self, tiny: Path) -> None:
        store = Store(str(tiny))
        ref = store.put_chunk(b"a" * 300_000)
        store.commit("checkpoint", "a", 1, {"chunk": str(ref)})
        with pytest.raises(errors.StoreFull, match="free space or pass store=") as caught:
            store.put_chunk(os.urandom(2_000_000))
        assert store.url in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert store.verify("checkpoint", "a", 1) == []
        assert files(store, "tmp") == []  # what did not fit takes no room
        store.put_chunk(b"b" * 300_000)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_a_quota_is_a_full_store(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def full(handle: int) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(errors.StoreFull):
                store.put_chunk(b"x")
            with pytest.raises(errors.StoreFull):
                store.commit("checkpoint", "a", 1, {})
        assert store.usage().chunks == 0
        assert store.steps("checkpoint", "a") == []

    def test_other_failures_keep_their_cause(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(errors.StoreError, match="could not write") as caught:
            Store(str(tmp_path / "file")).put_chunk(b"x")
        assert isinstance(caught.value.__cause__, NotADirectoryError)


class TestRoom:
    def test_sweep_keeps_what_any_manifest_names(self, any_store: Store) -> None:
        kept, lost, other = any_store.put_buffers([b"kept", b"lost", b"other"])
        any_store.commit("checkpoint", "a", 1, {"c": str(kept)})
        any_store.commit("checkpoint", "a", 2, {"c": [str(kept), str(lost)]})
        any_store.commit("snapshot", "b/c", 1, {"deep": {"er": [str(other)]}})
        any_store.discard("checkpoint", "a", 2)
        any_store.discard("checkpoint", "a", 2)
        assert any_store.prune(grace_s=0).bytes == 4
        assert any_store.usage().chunks == 2
        assert any_store.verify("checkpoint", "a", 1) == []
        assert any_store.verify("snapshot", "b/c", 1) == []

    def test_what_lies_in_it(self, any_store: Store) -> None:
        kept, shared, _ = any_store.put_buffers([b"kept", b"shared", b"nobody's"])
        any_store.commit("checkpoint", "a", 1, {"c": [str(kept), str(shared)]})
        any_store.commit("snapshot", "b/c", 1, {"c": str(shared)})
        found = any_store.usage()
        assert (found.chunks, found.bytes, found.manifests) == (3, 18, 2)
        assert found.kinds == {"checkpoint": 10, "snapshot": 6}
        assert found.unnamed == 8

    def test_all_of_it_is_verified(self, store: Store) -> None:
        good, bad = store.put_buffers([b"good", b"bad"])
        store.commit("checkpoint", "a", 1, {"c": str(good)})
        store.commit("checkpoint", "a/b", 1, {"c": [str(good), str(bad)]})
        store.commit("checkpoint", "a/b", 2, {"c": str(bad)})
        store.commit("snapshot", "s", 1, {})
        assert store.verify() == []
        (chunk,) = [path for path in files(store, "chunks") if path.name == bad.hash]
        chunk.write_bytes(b"BAD")
        (manifest,) = files(store, "manifests/snapshot")
        manifest.write_bytes(manifest.read_bytes()[:-2])
        assert [bad.hash in problem for problem in store.verify()] == [False, True]
        assert store.verify("snapshot")[0].startswith("manifest ")
        assert len(store.verify("checkpoint", "a/b")) == 1
        assert len(store.verify("checkpoint")) == 1

    def test_a_damaged_manifest_still_protects_its_chunks(self, store: Store) -> None:
        (ref,) = store.put_buffers([b"kept"])
        store.commit("checkpoint", "a", 1, {"c": str(ref)})
        (file,) = files(store, "manifests")
        file.write_bytes(file.read_bytes()[:-9])
        assert store.prune(grace_s=0).chunks == 0
        assert store.exists(ref.hash)


class TestUrls:
    def test_a_path_and_a_url_are_the_same_place(self, tmp_path: Path) -> None:
        Store(str(tmp_path / "a b")).put_chunk(b"x")
        store = Store(f"file://{tmp_path}/a b")
        assert store.usage().chunks == 1
        assert Store(store.url).usage().chunks == 1

    def test_places_without_conditional_create_are_refused(self) -> None:
        with pytest.raises(errors.UsageError, match="both believe"):
            Store("ftp://host/folder")

    def test_passwords_in_urls_are_refused_and_not_shown(self) -> None:
        with pytest.raises(errors.UsageError) as caught:
            Store("s3://key:hunter2@bucket/x")
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("url", ["", "s3://", "file://"])
    def test_a_url_has_to_name_a_place(self, url: str) -> None:
        with pytest.raises(errors.UsageError):
            Store(url)

    def test_join(self) -> None:
        assert join("s3://b/x/", "y", "z/w") == "s3://b/x/y/z/w"
        assert join("/data", "y") == "/data/y"
        for bad in ("..", "a/../b", ""):
            with pytest.raises(errors.UsageError):
                join("s3://b", bad)


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": str(root)}
