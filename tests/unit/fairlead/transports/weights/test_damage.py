"""Damage to a version is detected and named; a kill while publishing leaves the old or the new version."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fairlead.errors import CorruptWeights
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from tests.unit.fairlead.transports.weights.weights_world import publish


@pytest.fixture
def store(tmp_path: Path) -> FilesystemWeightStore:
    return FilesystemWeightStore(tmp_path / "weights")


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "linked": lambda path: (
        path.rename(path.with_suffix(".away")),
        path.symlink_to(path.with_suffix(".away")),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shard_is_named(store: FilesystemWeightStore, damage: str) -> None:
    version = WeightVersion(1, 0)
    publish(store, version)
    DAMAGES[damage](store.root / "1-0" / "model-2.safetensors")
    with pytest.raises(CorruptWeights, match=r"model-2\.safetensors"):
        store.fetch(version)


def rewrite(store: FilesystemWeightStore, change) -> None:
    """Change a manifest and update its checksum, as an attacker would."""
    path = store.root / "1-0" / "manifest.json"
    body = json.loads(path.read_bytes())["manifest"]
    change(body)
    path.write_text(json.dumps({"sha256": manifests._body_digest(body), "manifest": body}))


@pytest.mark.parametrize("name", ["../1-1/model-1.safetensors", "/etc/passwd", "a/b.safetensors", "", ".."])
def test_shard_outside_the_folder_is_refused(store: FilesystemWeightStore, name: str) -> None:
    publish(store, WeightVersion(1, 0))
    publish(store, WeightVersion(1, 1))
    rewrite(store, lambda body: body["shards"][0].update(name=name))
    with pytest.raises(CorruptWeights, match="not a plain file name"):
        store.fetch(WeightVersion(1, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(version="1-9"),
        lambda body: body.update(schema=99),
        lambda body: body.pop("lineage"),
        lambda body: body.update(lineage=[]),
        lambda body: body["tensors"].pop(),
        lambda body: body["tensors"][0].update(shape=[3, 2]),
        lambda body: body["shards"].pop(),
        lambda body: body["shards"][0].update(size_bytes="many"),
        lambda body: body["shards"][0].update(piece_hash="md5"),
        lambda body: body["shards"][0].update(piece_hash=["blake3"]),
    ],
)
def test_manifest_with_wrong_content_is_refused(store: FilesystemWeightStore, change) -> None:
    publish(store, WeightVersion(1, 0))
    rewrite(store, change)
    with pytest.raises(CorruptWeights, match=r"manifest\.json"):
        store.fetch(WeightVersion(1, 0))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_flipped_bit_or_cut_is_detected(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = FilesystemWeightStore(tmp_path_factory.mktemp("bits"))
    publish(store, WeightVersion(1, 0))
    path = store.root / "1-0" / data.draw(st.sampled_from(["manifest.json", "model-1.safetensors"]))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[position:]
    path.write_bytes(content)
    try:
        store.fetch(WeightVersion(1, 0))
    except CorruptWeights as error:
        assert path.name in str(error)
    else:  # the change affects only white space of the manifest
        assert json.loads(bytes(content))["sha256"] == manifests._body_digest(
            json.loads(bytes(content))["manifest"]
        )


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from fairlead.transports.weights.base import Ancestor
    from fairlead.transports.weights.filesystem import FilesystemWeightStore
    from fairlead.types import WeightVersion

    def dying(real):
        def call(*args, **kwargs):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*args, **kwargs)
        return call

    def publish(store, update):
        with store.publish(WeightVersion(1, update), parent=None, lineage=(Ancestor(1, 0),)) as folder:
            (folder / "m.safetensors").write_bytes(bytes.fromhex(sys.argv[2]))

    for left in range(60):
        store = FilesystemWeightStore(Path(sys.argv[1]) / f"step-{left}")
        publish(store, 0)
        pid = os.fork()
        if not pid:
            for name in ("fsync", "rename", "replace", "mkdir", "open"):
                setattr(os, name, dying(getattr(os, name)))
            publish(store, 1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(code)
        if not code:
            break
""")


def test_kill_at_any_step_leaves_old_or_new_version(store: FilesystemWeightStore, tmp_path: Path) -> None:
    """SIGKILL before every system call that writes or orders files; the next publish cleans up."""
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes().hex()
    # One process, which forks for every kill: it imports only once.
    done = subprocess.run(
        [sys.executable, "-S", "-c", KILLED, str(tmp_path), content],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    *killed, last = map(int, done.stdout.split())
    assert len(killed) > 5
    assert set(killed) == {-signal.SIGKILL}
    assert last == 0
    seen = set()
    for step in range(len(killed) + 1):
        target = FilesystemWeightStore(tmp_path / f"step-{step}")
        manifest = target.latest()
        assert manifest is not None
        target.fetch(manifest.version)
        seen.add(manifest.version.update)
        publish(target, WeightVersion(1, 2))
        assert not [path for path in target.root.iterdir() if path.name.startswith(".")]
        assert FilesystemWeightStore(target.root).latest().version == WeightVersion(1, 2)  # type: ignore[union-attr]
    assert seen == {0, 1}
