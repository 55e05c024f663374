"""A full or read-only disk while a version is published: the error names it, the old version stays."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fairlead.errors import ReadOnlyDisk
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from tests.unit.fairlead.transports.weights.weights_world import publish

_FULL = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    import numpy as np
    from safetensors.numpy import save_file
    from fairlead.errors import OutOfSpace
    from fairlead.transports.weights import filesystem
    from fairlead.transports.weights.base import Ancestor
    from fairlead.types import WeightVersion
    store = filesystem.FilesystemWeightStore(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    encode = filesystem.manifests.encode
    filesystem.manifests.encode = lambda manifest: encode(manifest) + b" " * int(sys.argv[3])
    try:
        with store.publish(WeightVersion(1, 1), parent=None, lineage=(Ancestor(1, 0),)) as folder:
            save_file({"a": np.zeros(50_000, np.float32)}, folder / "model-1.safetensors")
    except OutOfSpace as error:
        print(error)
""")


@pytest.mark.parametrize(("limit_bytes", "padding"), [(100_000, 0), (250_000, 300_000)])
def test_full_disk_is_named_and_leaves_no_partial_version(
    tmp_path: Path, limit_bytes: int, padding: int
) -> None:
    """The kernel limits the size of files, as a full disk would: of the shard, or of the manifest."""
    store = FilesystemWeightStore(tmp_path / "weights")
    publish(store, WeightVersion(1, 0))
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(store.root), str(limit_bytes), str(padding)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"weights 1-1 cannot be written: the disk of {store.root} is full" in done.stdout
    assert sorted(path.name for path in store.root.iterdir()) == ["1-0", "latest"]
    assert store.latest().version == WeightVersion(1, 0)  # type: ignore[union-attr]
    store.fetch(WeightVersion(1, 0))
    publish(store, WeightVersion(1, 1))
    assert store.latest().version == WeightVersion(1, 1)  # type: ignore[union-attr]


def test_read_only_disk_is_named_and_old_version_stays(tmp_path: Path) -> None:
    store = FilesystemWeightStore(tmp_path / "weights")
    publish(store, WeightVersion(1, 0))
    aside = store.root.rename(tmp_path / "aside")
    # Not even root can create folders there.
    store.root.symlink_to("/sys/kernel")
    with pytest.raises(ReadOnlyDisk, match=r"weights 1-1 cannot be written: .*weights is read-only"):
        publish(store, WeightVersion(1, 1))
    store.root.unlink()
    aside.rename(store.root)
    assert store.latest().version == WeightVersion(1, 0)  # type: ignore[union-attr]
    publish(store, WeightVersion(1, 1))
    assert store.latest().version == WeightVersion(1, 1)  # type: ignore[union-attr]
