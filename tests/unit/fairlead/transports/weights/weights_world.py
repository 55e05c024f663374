"""Small versions to publish, for tests of the weight store."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save_file

from fairlead.transports.weights.base import Ancestor
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion

FIRST = (Ancestor(1, 0),)
SECOND = (Ancestor(1, 0), Ancestor(2, 5))


def publish(
    store: FilesystemWeightStore, version: WeightVersion, *, lineage: tuple[Ancestor, ...] = FIRST
) -> None:
    with store.publish(version, parent=None, lineage=lineage) as folder:
        save_file({"a": np.full((2, 3), version.update, np.float32)}, folder / "model-1.safetensors")
        save_file({"b": np.arange(4, dtype=np.int64)}, folder / "model-2.safetensors")
