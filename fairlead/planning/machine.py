"""Resources of this machine: main memory, GPU memory and free disk space. Knows nothing about runs."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_GPU_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory of a machine, in bytes."""

    host_bytes: int
    """Main memory, or the memory limit of the container."""
    gpu_bytes: int
    """Memory of the first visible GPU; 0 without a GPU."""
    num_gpus: int = 1
    """Number of visible GPUs, which are taken to be equal; has no meaning without one."""

    @property
    def has_gpu(self) -> bool:
        """Whether `device = "auto"` selects a GPU."""
        return self.gpu_bytes > 0


def this_machine() -> Machine:
    """Return the resources of this machine."""
    return Machine(_host_bytes(), _gpu_bytes(), max(1, len(visible_gpus())))


def free_disk_bytes(path: Path) -> int:
    """Return the free disk space at a folder, which need not exist yet."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _host_bytes() -> int:
    total = int(psutil.virtual_memory().total)
    for name in _CGROUP_LIMITS:
        try:
            limit = int(Path(name).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        total = min(total, limit)
    return total


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the GPUs that processes of this machine may use, as `CUDA_VISIBLE_DEVICES` names them.

    Args:
        environment: its `CUDA_VISIBLE_DEVICES` restricts the GPUs of the machine.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(index for index, _, _ in _gpus())
    found = [part.strip() for part in visible.split(",")]
    # CUDA ignores everything from the first invalid entry on; -1 is the usual one.
    return tuple(itertools.takewhile(lambda name: name not in ("", "-1"), found))


def _gpus() -> list[tuple[str, str, int]]:
    """Return index, UUID and memory in MiB of every GPU; none without a driver."""
    try:
        answer = subprocess.run(_GPU_QUERY, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in answer.splitlines():
        index, uuid, mebibytes = (part.strip() for part in line.split(","))
        found.append((index, uuid, int(mebibytes)))
    return found


def _gpu_bytes() -> int:
    first = next(iter(visible_gpus()), "")
    for index, uuid, mebibytes in _gpus() if first else ():
        if first == index or uuid.startswith(first):
            return mebibytes << 20
    return 0
