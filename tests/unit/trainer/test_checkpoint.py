"""Checkpoints and incarnations: round trips, damage, and checkpoints of another lineage."""

from __future__ import annotations

import contextlib
import itertools
import json

import pytest
import torch

from fairlead.errors import CorruptCheckpoint, Fenced
from fairlead.transports.weights.base import Ancestor
from fairlead.types import WeightVersion
from trainer import durable, lineage
from trainer.checkpoint import CheckpointStore

FRESH = (Ancestor(1, 0),)


def tensors(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "policy": {"a.weight": torch.randn(3, 4, generator=draw), "b": torch.randn(2, generator=draw)},
        "policy_optimizer": {"a.weight:step": torch.tensor(7.0), "b:exp_avg": torch.randn(2, generator=draw)},
        "empty": {},
    }


@pytest.fixture
def store(tmp_path):
    found = CheckpointStore(tmp_path / "checkpoints")
    for update in (5, 10, 15):
        found.save(
            WeightVersion(1, update), tensors=tensors(update), state={"update": update, "x": [1, None]}
        )
    return found


def test_checkpoint_round_trip_is_bit_for_bit(store):
    found = store.load_newest(FRESH)
    assert found.version == WeightVersion(1, 15)
    assert found.state == {"update": 15, "x": [1, None]}
    expected = tensors(15)
    assert found.tensors.keys() == expected.keys()
    for name, group in expected.items():
        assert found.tensors[name].keys() == group.keys()
        assert all(torch.equal(found.tensors[name][key], value) for key, value in group.items())
    assert CheckpointStore(store.root / "nowhere").load_newest(FRESH) is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "flipped bit": lambda folder: flip(folder / "policy.safetensors"),
    "truncated": lambda folder: (folder / "policy.safetensors").write_bytes(
        (folder / "policy.safetensors").read_bytes()[:-20]
    ),
    "missing file": lambda folder: (folder / "state.json").unlink(),
    "missing manifest": lambda folder: (folder / "manifest.json").unlink(),
    "empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "strange manifest": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "changed state": lambda folder: (folder / "state.json").write_text('{"update": 99}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_checkpoint_is_logged_and_skipped(store, damage, caplog):
    damage(store.root / "1-15")
    assert store.load_newest(FRESH).version == WeightVersion(1, 10)
    assert "1-15 is damaged" in caplog.text
    with pytest.raises(CorruptCheckpoint, match="1-15"):
        store.load(WeightVersion(1, 15))
    store.save(WeightVersion(1, 20), tensors=tensors(20), state={})
    store.prune(keep=2, lineage=FRESH)
    assert store.versions() == [WeightVersion(1, 10), WeightVersion(1, 20)]


def test_checkpoints_of_an_abandoned_lineage_are_not_read(store):
    resumed_at_5 = (Ancestor(1, 0), Ancestor(2, 5))
    assert store.load_newest(resumed_at_5).version == WeightVersion(1, 5)
    store.save(WeightVersion(2, 6), tensors=tensors(6), state={})
    assert store.load_newest(resumed_at_5).version == WeightVersion(2, 6)
    store.prune(keep=5, lineage=resumed_at_5)
    assert store.versions() == [WeightVersion(1, 5), WeightVersion(2, 6)]


def test_crash_while_writing_keeps_older_checkpoints(store):
    def crash() -> None:
        with durable.new_folder(store.root / "1-20") as folder:
            (folder / "policy.safetensors").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    half = store.root / ".1-25.new"
    half.mkdir()
    assert store.load_newest(FRESH).version == WeightVersion(1, 15)
    store.prune(keep=3, lineage=FRESH)
    assert not half.exists()


def test_older_trainer_neither_writes_nor_deletes(store):
    assert lineage.claim(store.root, at_least=2) == 2
    with pytest.raises(Fenced, match="incarnation 2"):
        store.save(WeightVersion(1, 20), tensors=tensors(20), state={})
    with pytest.raises(Fenced, match="incarnation 2"):
        store.prune(keep=1, lineage=FRESH)
    assert len(store.versions()) == 3


def test_prune_keeps_what_a_newer_trainer_wrote_after_the_fence_was_checked(store):
    """The older trainer is delayed between check and deletion: at its check the newer claim was not there."""
    assert lineage.claimed(store.root) == []
    store.save(WeightVersion(2, 20), tensors=tensors(20), state={})
    half = store.root / ".2-25.new"
    half.mkdir()
    store.prune(keep=1, lineage=FRESH)
    assert store.versions() == [WeightVersion(1, 15), WeightVersion(2, 20)]
    assert half.exists()
    # The newer trainer ignores what the older one adds: it resumed before that.
    store.save(WeightVersion(1, 25), tensors=tensors(25), state={})
    newer = store.load_newest((Ancestor(1, 0), Ancestor(2, 15)))
    assert newer.version == WeightVersion(2, 20)


def test_checkpoint_contains_no_pickle(store):
    for file in (store.root / "1-15").iterdir():
        assert file.suffix in (".json", ".safetensors")


def steps(folder, seen):
    """The start of a trainer as in `Incarnation`, one step at a time; `seen` gets its lineage."""
    number = lineage.claim(folder, at_least=1)
    yield
    lineage.shut_out(folder, number)
    yield
    known = lineage.read(folder)
    yield
    with contextlib.suppress(Fenced):
        lineage.record_resume(folder, number, resumed_from=3)
        seen[number] = (*known, Ancestor(number, 3))
    yield


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("aaaabbbb"))), ids="".join)
def test_incarnation_that_begins_knows_all_earlier_ones(tmp_path, order):
    """For every order of the steps of two trainers, although neither checks for a newer one."""
    seen = {}
    trainers = {name: steps(tmp_path, seen) for name in "ab"}
    for name in order:
        next(trainers[name])
    written = lineage.read(tmp_path)
    assert max(lineage.claimed(tmp_path)) in seen
    assert [one.incarnation for one in written] == sorted(seen)
    for number, known in seen.items():
        assert known == tuple(one for one in written if one.incarnation <= number)
    assert not list(tmp_path.glob(".*"))


def test_incarnations_are_claimed_once_and_resume_points_kept(tmp_path):
    assert lineage.claim(tmp_path, at_least=1) == 1
    lineage.record_resume(tmp_path, 1, resumed_from=0)
    assert lineage.claim(tmp_path, at_least=1) == 2  # died before it resumed: wrote nothing
    assert lineage.claim(tmp_path, at_least=7) == 7
    lineage.record_resume(tmp_path, 7, resumed_from=10)
    assert lineage.read(tmp_path) == (Ancestor(1, 0), Ancestor(7, 10))
    (tmp_path / "incarnation-7.resumed-from.json").write_text("{")
    with pytest.raises(CorruptCheckpoint, match="incarnation-7"):
        lineage.read(tmp_path)


def test_write_json_replaces_atomically_and_writes_null_for_nonfinite(tmp_path):
    path = tmp_path / "x.json"
    durable.write_json(path, {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": float("-inf")}})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": None}}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_new_folder_replaces_the_older_one(tmp_path):
    for text in ("one", "two"):
        with durable.new_folder(tmp_path / "model") as folder:
            (folder / "f").write_text(text)
    assert (tmp_path / "model" / "f").read_text() == "two"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
