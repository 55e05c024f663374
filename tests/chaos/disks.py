"""Small disks for a run that can be filled or made read-only: real mounts that other processes do not see.

They are in a mount namespace that a sleeping process keeps alive; processes that use them are started inside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_MOUNT = (
    'for disk in "$@"; do mount -t tmpfs -o size=6m none "$disk" || exit 1; done; echo there; exec sleep 3600'
)


class Disks:
    """Folders that are mounts for the processes inside the namespace."""

    def __init__(self, keeper: subprocess.Popen[str], folders: Sequence[Path]) -> None:
        self._keeper = keeper
        self._folders = folders

    def inside(self, folder: Path) -> list[str]:
        """Return the prefix of a command that runs it in a folder, inside the namespace."""
        enter = ["nsenter", "--target", str(self._keeper.pid), "--user", "--mount", "--preserve-credentials"]
        # After entering, the working directory is the root of the namespace.
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(folder)]

    def fill(self, folder: Path) -> None:
        """Fill the disk completely."""
        with (self._seen(folder) / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                assert os.statvfs(self._seen(folder)).f_bavail == 0

    def empty(self, folder: Path) -> None:
        """Free the space again."""
        (self._seen(folder) / "filler").unlink()

    def remount(self, folder: Path, how: str) -> None:
        """Remount as `ro` or `rw`; wait until no process has a file open for writing."""
        deadline = time.monotonic() + 30
        while subprocess.run(
            [*self.inside(folder), "mount", "-o", f"remount,{how}", "none", str(folder)],
            capture_output=True,
            check=False,
        ).returncode:
            assert time.monotonic() < deadline, f"{folder} cannot be mounted {how}"

    def bring_out(self) -> None:
        """Copy the content of the disks to folders outside the namespace."""
        for folder in self._folders:
            shutil.copytree(self._seen(folder), folder, dirs_exist_ok=True, symlinks=True)

    def _seen(self, folder: Path) -> Path:
        return Path(f"/proc/{self._keeper.pid}/root{folder}")


@contextmanager
def mounted(*folders: Path) -> Iterator[Disks]:
    """Mount disks of 6 MiB at folders; skip the test if that is not allowed."""
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        pytest.skip("needs `unshare` and `nsenter`")
    for folder in folders:
        folder.mkdir(parents=True)
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", *map(str, folders)]
    keeper = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert keeper.stdout is not None
        if keeper.stdout.readline() != "there\n":
            pytest.skip("needs permission to mount in a user namespace")
        yield Disks(keeper, folders)
    finally:
        keeper.kill()
        keeper.communicate()
