"""A store with a key: nothing of the content leaves the process, and every wrong is told apart."""

from __future__ import annotations

import base64
import copy
import json
import os
import pickle
import stat
import traceback
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints
from mlcloud.cli import main
from mlcloud.store import CHUNK_BYTES, ChunkRef, Part, Signer, Store, new_key
from mlcloud.store.blocks import BLOCK_BYTES, digests
from mlcloud.store.keys import load_key
from mlcloud.store.sealing import HEADER_BYTES, OVERHEAD

pytest.importorskip("cryptography", reason="sealing needs: pip install 'mlcloud[encryption]'")
np = pytest.importorskip("numpy")

KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "s") if request.param == "file" else f"memory://sealed{tmp_path}"


def chunk_file(folder: Path, ref: ChunkRef) -> Path:
    return folder / "chunks" / ref.hash[:2] / ref.hash


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


class TestChunks:
    @pytest.mark.parametrize("size", [0, 1, 100, 2**20, 2**20 + 1, CHUNK_BYTES])
    def test_what_was_put_comes_back(self, url: str, size: int) -> None:
        store, data = Store(url, key=KEY), os.urandom(size)
        ref = store.put_chunk(data)
        assert (ref.size, ref.new) == (size, True)
        assert store.get_chunk(ref.hash) == data
        into = bytearray(size)
        store.get_buffer([ref], into)
        assert into == data
        assert not store.put_chunk(data).new
        assert store.missing([ref]) == []
        assert store.usage().bytes == size + OVERHEAD

    def test_many_at_once(self, url: str) -> None:
        """Their memory is shared by the threads: none may see another's."""
        store = Store(url, key=KEY)
        data = [os.urandom(2**21 + number) for number in range(24)]
        refs = store.put_buffers(data)
        for _ in range(3):
            for ref, each in zip(refs, data, strict=True):
                assert store.get_buffer([ref]) == each
        assert bytes(store.get_buffer(refs)) == b"".join(data)

    def test_neither_content_nor_its_hash_is_in_the_store(self, tmp_path: Path) -> None:
        from blake3 import blake3

        content = b"patient 17 has a secret" * 9
        store = Store(str(tmp_path), key=KEY)
        ref = store.put_chunk(content)
        store.commit("checkpoint", "a", 1, {"c": str(ref), "layer": "a secret name", "loss": 0.123})
        lies = everything(tmp_path)
        for word in (content[:23], b"secret", b"layer", b"0.123", KEY, base64.b64encode(KEY)):
            assert word not in lies
        assert blake3(content).hexdigest() not in {ref.hash, *map(str, tmp_path.rglob("*"))}
        # Whoever has another key cannot find out either whether this content is there.
        assert Store(str(tmp_path / "x"), key=OTHER).put_chunk(content).hash != ref.hash
        assert Store(str(tmp_path / "y"), key=KEY).put_chunk(content).hash == ref.hash

    def test_the_same_content_is_never_the_same_bytes(self, tmp_path: Path) -> None:
        refs = [Store(str(tmp_path / str(i)), key=KEY).put_chunk(b"same" * 99) for i in range(9)]
        found = {
            chunk_file(tmp_path / str(number), ref).read_bytes()[HEADER_BYTES:]
            for number, ref in enumerate(refs)
        }
        assert len(found) == 9

    def test_every_flipped_bit_and_every_length_is_noticed(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path), key=KEY)
        ref = store.put_chunk(b"precious")
        file = chunk_file(tmp_path, ref)
        good = file.read_bytes()
        bad = [good[:length] for length in range(len(good))] + [good + b"x"]
        for at in range(len(good)):
            for bit in range(8):
                flipped = bytearray(good)
                flipped[at] ^= 1 << bit
                bad.append(bytes(flipped))
        for data in bad:
            file.write_bytes(data)
            with pytest.raises(errors.Damaged, match=ref.hash):
                store.get_chunk(ref.hash)
            with pytest.raises(errors.Damaged, match=ref.hash):
                store.get_buffer([ref])
        assert store.put_chunk(b"precious").new
        assert store.get_chunk(ref.hash) == b"precious"

    def test_one_chunk_in_the_place_of_another_is_noticed(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path), key=KEY)
        one, two = store.put_buffers([b"weights of Monday", b"weights of Friday"])
        store.commit("checkpoint", "a", 1, {"c": [str(one), str(two)]})
        chunk_file(tmp_path, one).write_bytes(chunk_file(tmp_path, two).read_bytes())
        for read in (lambda: store.get_chunk(one.hash), lambda: store.get_buffer([one])):
            with pytest.raises(errors.Damaged, match=one.hash):
                read()
        (problem,) = store.verify("checkpoint", "a", 1)
        assert one.hash in problem

    def test_plain_content_that_looks_sealed_is_itself(self, tmp_path: Path) -> None:
        sealed = Store(str(tmp_path / "sealed"), key=KEY)
        raw = chunk_file(tmp_path / "sealed", sealed.put_chunk(b"x" * 100)).read_bytes()
        for store in (Store(str(tmp_path / "plain")), Store(str(tmp_path / "other"), key=KEY)):
            ref = store.put_chunk(raw)  # a backup of a store in a store
            assert store.get_chunk(ref.hash) == raw
            assert store.get_buffer([ref]) == raw
        plain = Store(str(tmp_path / "plain")).put_chunk(raw)
        assert Store(str(tmp_path / "plain"), key=KEY).get_chunk(plain.hash) == raw

    def test_parts_of_chunks(self, tmp_path: Path) -> None:
        store, data = Store(str(tmp_path), key=KEY), os.urandom(4 * BLOCK_BYTES + 9)
        ref, blocks = store.put_chunk(data), digests(memoryview(data))

        def part(start: int, size: int) -> Part:
            return Part(ref, blocks, start, memoryview(bytearray(size)))

        parts = [part(0, len(data)), part(7, 9), part(BLOCK_BYTES - 1, 3 * BLOCK_BYTES)]
        assert list(store.read_parts(parts)) == [len(data), 0, 0]  # of one read
        assert list(store.read_parts([parts[1]])) == [len(data)]
        for each in parts:
            assert each.into == data[each.start : each.start + each.into.nbytes]
        for given in (None, OTHER):
            for each in parts:
                with pytest.raises(errors.Sealed):
                    list(Store(str(tmp_path), key=given).read_parts([each]))
        raw = bytearray(chunk_file(tmp_path, ref).read_bytes())
        raw[-1] ^= 1
        chunk_file(tmp_path, ref).write_bytes(raw)
        with pytest.raises(errors.Damaged):
            list(store.read_parts([part(0, 5)]))


class TestManifests:
    def test_every_flipped_bit_is_noticed(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path), key=KEY)
        store.commit("checkpoint", "a", 1, {"lr": 1e-5})
        (file,) = (tmp_path / "manifests").rglob("*.json")
        good = file.read_bytes()
        for at in range(len(good)):
            bad = bytearray(good)
            bad[at] ^= 1
            file.write_bytes(bad)
            with pytest.raises(errors.Damaged):
                store.read("checkpoint", "a", 1)

    @pytest.mark.parametrize("field", ["sealed", "objects", "created", "id", "step", "name", "key"])
    def test_nothing_can_be_altered_by_who_makes_the_checksum_anew(
        self, tmp_path: Path, field: str
    ) -> None:
        from blake3 import blake3

        from mlcloud.store.manifest import canonical

        store = Store(str(tmp_path), key=[KEY, OTHER])
        ref = store.put_chunk(b"x")
        store.commit("checkpoint", "a", 1, {"c": str(ref)})
        store.commit("checkpoint", "b", 2, {"c": str(ref)})
        first, second = sorted((tmp_path / "manifests").rglob("*.json"))
        document, other = json.loads(first.read_bytes()), json.loads(second.read_bytes())
        del document["blake3"]
        place = ("a", 1)
        if field == "sealed":
            document["body"]["sealed"] = other["body"]["sealed"]
        elif field == "objects":
            document["body"]["objects"] = []
        elif field == "key":
            document["body"]["key"] = load_key(OTHER).fingerprint
        else:
            document[field] = other[field]
            place = (document["name"], document["step"])
        target = tmp_path / "manifests" / "checkpoint" / place[0] / f"{place[1]:012d}.json"
        document["blake3"] = blake3(canonical(document)).hexdigest()
        target.write_bytes(canonical(document))
        with pytest.raises(errors.Damaged, match="altered"):
            store.read("checkpoint", *place)

    def test_who_has_no_key_or_another_is_told_which(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path), key=KEY)
        ref = store.put_chunk(b"content")
        store.commit("checkpoint", "a", 1, {"c": str(ref)})
        fingerprint = load_key(KEY).fingerprint
        for given in (None, OTHER):
            stranger = Store(str(tmp_path), key=given)
            for ask in (
                lambda s: s.read("checkpoint", "a", 1),
                lambda s: s.verify("checkpoint", "a", 1),
                lambda s: s.verify(),
                lambda s: s.get_chunk(ref.hash),
                lambda s: s.get_buffer([ref]),
            ):
                with pytest.raises(errors.Sealed, match=rf"{fingerprint}.*key=") as caught:
                    ask(stranger)
                assert not isinstance(caught.value, errors.Damaged)
            assert not stranger.is_suspect(ref.hash)
            assert stranger.steps("checkpoint", "a") == [1]
            assert stranger.names("checkpoint") == ["a"]

    def test_steps_that_were_there_before_the_key_can_be_read(self, url: str) -> None:
        plain, sealed = Store(url), Store(url, key=KEY)
        old = plain.put_buffers([b"old" * 99])
        plain.commit("checkpoint", "a", 1, {"c": [str(ref) for ref in old]})
        new = sealed.put_buffers([b"old" * 99, b"new" * 99])
        sealed.commit("checkpoint", "a", 2, {"c": [str(ref) for ref in new]})
        for step, refs, content in ((1, old, b"old" * 99), (2, new, b"old" * 99 + b"new" * 99)):
            assert sealed.read("checkpoint", "a", step) == {"c": [str(ref) for ref in refs]}
            assert sealed.get_buffer(refs) == content
            assert sealed.verify("checkpoint", "a", step) == []
        assert sealed.verify() == []
        assert plain.verify("checkpoint", "a", 1) == []
        blocks = digests(memoryview(b"old" * 99))
        part = Part(old[0], blocks, 3, memoryview(bytearray(5)))
        assert list(sealed.read_parts([part])) == [297]
        assert part.into == b"oldol"

    def test_a_key_is_changed(self, url: str) -> None:
        """New steps have the new key, and the old ones are read for as long as theirs is given."""
        Store(url, key=OTHER).commit("checkpoint", "a", 1, {"n": 1})
        store = Store(url, key=[KEY, OTHER])
        store.commit("checkpoint", "a", 2, {"n": 2})
        assert [store.read("checkpoint", "a", step)["n"] for step in (1, 2)] == [1, 2]
        assert Store(url, key=KEY).read("checkpoint", "a", 2) == {"n": 2}
        with pytest.raises(errors.Sealed, match=load_key(OTHER).fingerprint):
            Store(url, key=KEY).read("checkpoint", "a", 1)

    def test_a_signature_holds_for_a_sealed_step(self, url: str) -> None:
        store, signer = Store(url, key=KEY), Signer(b"s" * 32)
        store.commit("snapshot", "a", 1, {"n": 1}, sign=signer.sign)
        assert store.read("snapshot", "a", 1, verify=signer.verify) == {"n": 1}
        with pytest.raises(errors.Damaged, match="not signed"):
            store.read("snapshot", "a", 1, verify=Signer(b"t" * 32).verify)

    def test_who_has_no_key_tidies_up(self, tmp_path: Path) -> None:
        store, stranger = Store(str(tmp_path), key=KEY), Store(str(tmp_path))
        kept, gone = store.put_buffers([b"kept" * 10, b"gone" * 5])
        store.commit("checkpoint", "a", 1, {"deep": [{"er": str(kept)}]})
        usage = stranger.usage()
        assert usage.kinds == {"checkpoint": 40 + OVERHEAD}
        assert (usage.chunks, usage.unnamed) == (2, 20 + OVERHEAD)
        assert stranger.missing([kept, gone]) == []
        assert stranger.prune(grace_s=0).bytes == 20 + OVERHEAD
        assert store.verify("checkpoint", "a", 1) == []
        assert not store.exists(gone.hash)
        stranger.discard("checkpoint", "a", 1)
        assert stranger.prune(grace_s=0).chunks == 1
        # and a collector that has the key tells the others what it does
        store.put_chunk(b"left over")
        assert store.prune(grace_s=0).chunks == 1
        assert stranger.prune(grace_s=0).chunks == 0


class TestCheckpoints:
    def test_save_restore_and_fall_back(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path), key=KEY)
        series = Checkpoints(store, "exp")
        weights = np.arange(3_000_000, dtype=np.float32)
        series.save({"w": weights, "note": "secret"}, 1, metric=0.5)
        weights[0] = 7
        series.save({"w": weights, "note": "secret"}, 2, metric=0.25)
        assert series.info()[1].metric == 0.25
        # what did not change is not written again, and equal content is no error
        assert series.info()[1].new_bytes < series.info()[0].new_bytes
        assert series.save({"w": weights, "note": "secret"}, 2, metric=0.25).new_bytes == 0
        state = {"w": np.zeros(3_000_000, np.float32), "note": ""}
        assert series.restore(state) == 2
        assert state["note"] == "secret"
        assert np.array_equal(state["w"], weights)
        newest = store.read("checkpoint", "exp", 2)["segments"][0][0]
        file = chunk_file(tmp_path, ChunkRef.parse(newest))
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.warns(UserWarning, match="going back to step 1"):
            assert series.restore(state) == 1
        assert b"secret" not in everything(tmp_path)

    def test_a_wrong_key_neither_falls_back_nor_replaces_anything(self, tmp_path: Path) -> None:
        Checkpoints(Store(str(tmp_path)), "exp").save({"n": 0}, 1)
        Checkpoints(Store(str(tmp_path), key=KEY), "exp").save({"n": 1}, 2)
        before = everything(tmp_path)
        for given in (None, OTHER):
            series = Checkpoints(Store(str(tmp_path), key=given), "exp")
            for ask in (series.read, series.info, series.verify, lambda s=series: s.save({}, 2)):
                with pytest.raises(errors.Sealed, match=load_key(KEY).fingerprint):
                    ask()
            assert series.load(1) == {"n": 0}
        after = everything(tmp_path)
        assert len(after) >= len(before)
        assert Checkpoints(Store(str(tmp_path), key=KEY), "exp").load(2) == {"n": 1}

    @pytest.mark.parametrize("before", [None, OTHER])
    def test_new_steps_do_not_rest_on_chunks_from_before_the_key(
        self, tmp_path: Path, before: bytes | None
    ) -> None:
        state = {"w": np.arange(3_000_000, dtype=np.float32)}
        Checkpoints(Store(str(tmp_path), key=before), "exp").save(state, 1)
        given = [KEY] if before is None else [KEY, before]
        series = Checkpoints(Store(str(tmp_path), key=given), "exp")
        assert series.restore(state) == 1
        assert series.save(state, 2).new_bytes > 12_000_000
        assert series.save(state, 3).new_bytes == 0
        series.prune(2, sweep=True)
        alone = Checkpoints(Store(str(tmp_path), key=KEY), "exp")
        assert alone.verify() == []
        chunks = [path for path in (tmp_path / "chunks").rglob("*") if path.is_file()]
        assert all(path.read_bytes().startswith(b"mlcseal") for path in chunks)

    def test_in_a_shell(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run, place, key = CliRunner(), str(tmp_path / "s"), str(tmp_path / "key")
        made = run.invoke(main, ["checkpoints", "new-key", key])
        assert made.exit_code == 0
        fingerprint = load_key(key).fingerprint
        assert fingerprint in made.output
        assert run.invoke(main, ["checkpoints", "new-key", key]).exit_code == 1
        Checkpoints(Store(place, key=key)).save({"n": 5}, 3, metric=0.75)
        refused = run.invoke(main, ["checkpoints", "ls", place])
        assert refused.exit_code == 1
        assert "Sealed" in refused.output
        assert fingerprint in refused.output
        assert "--key FILE" in refused.output
        assert "0.75" in run.invoke(main, ["checkpoints", "ls", place, "--key", key]).output
        monkeypatch.setenv("MLCLOUD_ENCRYPTION_KEY", key)
        assert "all is well" in run.invoke(main, ["checkpoints", "verify", place]).output
        monkeypatch.setenv("MLCLOUD_ENCRYPTION_KEY", Path(key).read_text())
        assert "0.75" in run.invoke(main, ["checkpoints", "ls", place]).output
        # beside one that is not sealed, each is told for itself
        Checkpoints(place).save({"n": 6}, 4, metric=0.5)
        monkeypatch.delenv("MLCLOUD_ENCRYPTION_KEY")
        mixed = run.invoke(main, ["checkpoints", "ls", place]).output
        assert "0.5" in mixed
        assert "sealed" in mixed


class TestKeys:
    def test_a_key_is_made_once_and_private(self, tmp_path: Path) -> None:
        path = tmp_path / "keys" / "exp.key"
        fingerprint = new_key(path)
        assert load_key(path).fingerprint == fingerprint
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(path.parent) == ["exp.key"]
        with pytest.raises(errors.UsageError, match="not replaced"):
            new_key(path)
        assert load_key(str(path)).fingerprint == fingerprint
        path.chmod(0o640)
        with pytest.raises(errors.StoreError, match="chmod 600"):
            load_key(path)

    def test_where_it_may_come_from(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        raw = os.urandom(32)
        wanted = load_key(raw).fingerprint
        texts = [base64.b64encode(raw), base64.urlsafe_b64encode(raw), raw.hex().encode()]
        for number, content in enumerate([raw, texts[0] + b"\n", texts[1], texts[2]]):
            file = tmp_path / str(number)
            file.touch(0o600)
            file.write_bytes(content)
            assert load_key(file).fingerprint == wanted
            monkeypatch.setenv("EXP_KEY", str(file))
            assert load_key("env:EXP_KEY").fingerprint == wanted
        for text in texts:
            monkeypatch.setenv("EXP_KEY", text.decode())
            assert load_key("env:EXP_KEY").fingerprint == wanted
            assert load_key(text.decode).fingerprint == wanted
        assert load_key(lambda: raw).fingerprint == wanted

    def test_it_is_never_shown(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        raw = bytes(range(65, 97))
        texts = {raw.decode(), base64.b64encode(raw).decode(), raw.hex()}
        store = Store(str(tmp_path), key=raw)
        shown = [repr(store), repr(store._keys), repr(load_key(raw)), str(vars(store))]
        shown.append(repr(Checkpoints(store)))
        monkeypatch.setenv("EXP_KEY", base64.b64encode(raw).decode() + "A")
        (tmp_path / "short").touch(0o600)
        (tmp_path / "short").write_bytes(base64.b64encode(raw)[:-3])
        attempts: list[Any] = [
            base64.b64encode(raw).decode(),
            raw.hex(),
            "env:EXP_KEY",
            "env:NO_SUCH",
            raw[:31],
            raw + b"x",
            lambda: base64.b64encode(raw).decode() + "A",
            tmp_path / "short",
            [],
            5,
        ]
        for attempt in attempts:
            with pytest.raises(errors.MLCloudError) as caught:
                Store(str(tmp_path), key=attempt)
            shown.append("".join(traceback.format_exception(caught.value)))
        for refuse in (pickle.dumps, copy.copy, copy.deepcopy):
            for thing in (store, load_key(raw)):
                with pytest.raises(errors.NotPicklable, match="not pickled") as refused:
                    refuse(thing)
                shown.append(str(refused.value))
        for text in shown:
            assert not [secret for secret in texts if secret[:20] in text]

    def test_without_the_library_it_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sys

        from mlcloud.store import sealing

        sealing._library.cache_clear()
        monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
        with pytest.raises(errors.UsageError, match=r"mlcloud\[encryption\]"):
            Store(str(tmp_path), key=KEY)
        Store(str(tmp_path)).put_chunk(b"x")
