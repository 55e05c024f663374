"""The filesystem weight store: fetched versions equal published ones, despite crashes and damage."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fairlead.errors import CorruptWeights, Fenced, InvalidInput
from fairlead.transports.weights.base import Adapter, Ancestor, is_valid
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from tests.unit.fairlead.transports.weights.weights_world import FIRST, SECOND, publish


@pytest.fixture
def store(tmp_path: Path) -> FilesystemWeightStore:
    return FilesystemWeightStore(tmp_path / "weights")


def test_fetched_version_equals_published_one(store: FilesystemWeightStore) -> None:
    assert store.latest() is None
    assert store.versions() == ()
    version = WeightVersion(1, 7)
    with store.publish(version, parent=WeightVersion(1, 6), lineage=FIRST) as folder:
        save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, folder / "model.safetensors")
        assert store.latest() is None
        assert store.versions() == ()
    manifest = store.latest()
    assert manifest is not None
    assert manifest.version == version
    assert manifest.parent == WeightVersion(1, 6)
    assert manifest.lineage == FIRST
    assert [(t.name, t.dtype, t.shape, t.shard) for t in manifest.tensors] == [
        ("w", "F32", (2, 3), "model.safetensors")
    ]
    folder = store.fetch(version)
    assert np.array_equal(load_file(folder / "model.safetensors")["w"], np.arange(6.0).reshape(2, 3))
    assert (store.root / "latest").read_text() == "1-7\n"


def test_manifest_names_adapter_and_base(store: FilesystemWeightStore) -> None:
    adapter = Adapter("abc", {"r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "/base"})
    for update, kind in enumerate((adapter, None)):
        version = WeightVersion(1, update)
        with store.publish(version, parent=None, lineage=FIRST, adapter=kind) as folder:
            save_file({"w": np.zeros(1, np.float32)}, folder / "model.safetensors")
        manifest = FilesystemWeightStore(store.root).latest()
        assert manifest is not None
        assert manifest.adapter == kind


def test_publishing_again_changes_nothing(store: FilesystemWeightStore) -> None:
    version = WeightVersion(1, 0)
    publish(store, version)
    before = store.latest()
    with store.publish(version, parent=None, lineage=FIRST) as folder:
        save_file({"other": np.zeros(1, np.float32)}, folder / "model.safetensors")
    assert FilesystemWeightStore(store.root).latest() == before
    assert sorted(path.name for path in store.root.iterdir()) == ["1-0", "latest"]


def test_error_in_the_block_publishes_nothing(store: FilesystemWeightStore) -> None:
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        store.publish(WeightVersion(1, 0), parent=None, lineage=FIRST),
    ):
        raise RuntimeError("out of memory")
    assert store.latest() is None
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, "no tensors"),
        (lambda folder: (folder / "notes.txt").write_text("x"), r"notes\.txt"),
        (lambda folder: (folder / "m.safetensors").write_bytes(b"x"), "not a safetensors file"),
        (
            lambda folder: [
                save_file({"a": np.zeros(1)}, folder / f"{name}.safetensors") for name in ("one", "two")
            ],
            "tensor a 2 times",
        ),
    ],
)
def test_invalid_shards_are_refused(store: FilesystemWeightStore, write, message: str) -> None:
    with (
        pytest.raises((InvalidInput, CorruptWeights), match=message),
        store.publish(WeightVersion(1, 0), parent=None, lineage=FIRST) as folder,
    ):
        write(folder)
    assert store.versions() == ()


def test_version_outside_its_lineage_is_refused(store: FilesystemWeightStore) -> None:
    with pytest.raises(InvalidInput, match="a lineage that contains 1-6"):
        publish(store, WeightVersion(1, 6), lineage=SECOND)


def test_older_trainer_is_fenced_off(store: FilesystemWeightStore) -> None:
    publish(store, WeightVersion(2, 5), lineage=SECOND)
    with pytest.raises(Fenced, match="2-5"):
        publish(store, WeightVersion(1, 9))


def test_lower_incarnation_is_never_latest(store: FilesystemWeightStore, tmp_path: Path) -> None:
    """A paused trainer may still place a version; the newest one stays that of the newer trainer."""
    other = FilesystemWeightStore(tmp_path / "other")
    publish(other, WeightVersion(1, 30))
    publish(store, WeightVersion(2, 5), lineage=SECOND)
    os.rename(other.root / "1-30", store.root / "1-30")
    (store.root / "latest").write_text("1-30\n")
    manifest = store.latest()
    assert manifest is not None
    assert manifest.version == WeightVersion(2, 5)
    assert not is_valid(WeightVersion(1, 30), manifest.lineage)
    assert is_valid(WeightVersion(1, 5), manifest.lineage)


@pytest.mark.parametrize("hint", [None, "", "1-0", "9-9", "../../etc", "\udcff\udcfe", "x" * 10_000])
def test_hint_may_be_missing_stale_or_corrupt(store: FilesystemWeightStore, hint: str | None) -> None:
    publish(store, WeightVersion(1, 0))
    publish(store, WeightVersion(1, 1))
    if hint is None:
        (store.root / "latest").unlink()
    else:
        (store.root / "latest").write_bytes(hint.encode("utf-8", "surrogateescape"))
    manifest = FilesystemWeightStore(store.root).latest()
    assert manifest is not None
    assert manifest.version == WeightVersion(1, 1)
    publish(store, WeightVersion(1, 2))
    assert (store.root / "latest").read_text() == "1-2\n"


def test_other_folders_are_ignored(store: FilesystemWeightStore) -> None:
    publish(store, WeightVersion(1, 0))
    for name in ("1-5", "01-7", "lost+found", ".staging-1-9-x", ".trash-1-8-x"):
        (store.root / name).mkdir()
    (store.root / ".staging-1-9-x" / "manifest.json").write_text("{}")
    assert store.versions() == (WeightVersion(1, 0),)
    assert store.latest().version == WeightVersion(1, 0)  # type: ignore[union-attr]


def test_cleanup_spares_a_newer_trainer(store: FilesystemWeightStore) -> None:
    publish(store, WeightVersion(1, 0))
    (store.root / ".staging-1-1-dead").mkdir()
    (store.root / ".trash-1-1-dead").mkdir()
    (store.root / ".latest-dead").touch()
    (store.root / ".staging-2-0-busy").mkdir()
    publish(store, WeightVersion(1, 2))
    assert sorted(path.name for path in store.root.iterdir()) == [".staging-2-0-busy", "1-0", "1-2", "latest"]


def test_prune_keeps_newest_and_hinted_versions(store: FilesystemWeightStore) -> None:
    for update in range(6):
        publish(store, WeightVersion(1, update))
    (store.root / "latest").write_text("1-1\n")
    store.prune(keep=2)
    assert store.versions() == (WeightVersion(1, 1), WeightVersion(1, 4), WeightVersion(1, 5))
    with pytest.raises(InvalidInput):
        store.prune(keep=0)
    with pytest.raises(CorruptWeights, match="missing"):
        store.fetch(WeightVersion(1, 0))


@settings(max_examples=20, deadline=None)
@given(resumes=st.lists(st.integers(0, 6), min_size=0, max_size=5))
def test_latest_is_the_newest_of_the_last_incarnation(
    resumes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A run that crashed any number of times and resumed each time from an earlier update."""
    store = FilesystemWeightStore(tmp_path_factory.mktemp("history"))
    lineage: tuple[Ancestor, ...] = ()
    reached = 0
    for incarnation, wanted in enumerate(resumes, start=1):
        start = min(wanted, reached)
        lineage = (*lineage, Ancestor(incarnation, start))
        for update in range(start, start + 2):
            publish(store, WeightVersion(incarnation, update), lineage=lineage)
        reached = start + 1
        manifest = FilesystemWeightStore(store.root).latest()
        assert manifest is not None
        assert manifest.version == WeightVersion(incarnation, reached)
    valid = {str(version) for version in store.versions() if is_valid(version, lineage)}
    expected = set()
    for index, start in enumerate(Ancestor(a.incarnation, a.resumed_from) for a in lineage):
        bound = min([later.resumed_from for later in lineage[index + 1 :]], default=10**9)
        expected |= {
            f"{start.incarnation}-{update}"
            for update in (start.resumed_from, start.resumed_from + 1)
            if update <= bound
        }
    assert valid == expected


def test_unreadable_newest_manifest_falls_back_and_is_logged_once(
    store: FilesystemWeightStore, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, WeightVersion(1, 5))
    publish(store, WeightVersion(2, 5), lineage=SECOND)
    publish(store, WeightVersion(2, 6), lineage=SECOND)
    (store.root / "2-6" / "manifest.json").write_text("garbage")
    for _ in range(2):
        assert store.latest().version == WeightVersion(2, 5)  # type: ignore[union-attr]
    assert caplog.text.count("skipping damaged weights 2-6: ") == 1
    (store.root / "2-5" / "manifest.json").write_text("{}")
    with pytest.raises(CorruptWeights, match=r"manifest\.json"):
        FilesystemWeightStore(store.root).latest()


def test_latest_from_many_threads_while_versions_change(tmp_path: Path) -> None:
    written, asked = FilesystemWeightStore(tmp_path / "weights"), FilesystemWeightStore(tmp_path / "weights")
    publish(written, WeightVersion(1, 0))
    published = threading.Event()

    def ask() -> int:
        times = 0
        while not published.is_set():
            assert asked.latest() is not None
            times += 1
        return times

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            asking = [threads.submit(ask) for _ in range(4)]
            try:
                for update in range(1, 8):
                    publish(written, WeightVersion(1, update))
                    written.prune(keep=2)
            finally:
                published.set()
            assert all(each.result() for each in asking)
    finally:
        sys.setswitchinterval(interval)
