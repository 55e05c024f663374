"""Small disks of a run's own that fill up or become read-only: real mounts that no other process sees.

They live in a mount namespace that a sleeping process keeps; whoever is to see them is started inside.
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
    """Folders that are disks for those inside."""

    def __init__(self, keeper: subprocess.Popen[str], folders: Sequence[Path]) -> None:
        self._keeper, self._folders = keeper, folders

    def inside(self, folder: Path) -> list[str]:
        """The command that runs a command in a folder, where the disks are."""
        enter = ["nsenter", "--target", str(self._keeper.pid), "--user", "--mount", "--preserve-credentials"]
        # Entering leads to the root of what is mounted there.
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(folder)]

    def fill(self, folder: Path) -> None:
        """Leaves no byte."""
        with (self._seen(folder) / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                assert os.statvfs(self._seen(folder)).f_bavail == 0

    def empty(self, folder: Path) -> None:
        """Gives the room back."""
        (self._seen(folder) / "filler").unlink()

    def remount(self, folder: Path, how: str) -> None:
        """`ro` or `rw`; waits until nobody has a file open for writing."""
        deadline = time.monotonic() + 30
        while subprocess.run(
            [*self.inside(folder), "mount", "-o", f"remount,{how}", "none", str(folder)],
            capture_output=True,
            check=False,
        ).returncode:
            assert time.monotonic() < deadline, f"{folder} cannot be mounted {how}"

    def bring_out(self) -> None:
        """Copies what is on the disks to where everybody sees it."""
        for folder in self._folders:
            shutil.copytree(self._seen(folder), folder, dirs_exist_ok=True, symlinks=True)

    def _seen(self, folder: Path) -> Path:
        return Path(f"/proc/{self._keeper.pid}/root{folder}")


@contextmanager
def mounted(*folders: Path) -> Iterator[Disks]:
    """Disks of 6 MiB at folders; skips the test where that is not allowed."""
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        pytest.skip("needs `unshare` and `nsenter`")
    for folder in folders:
        folder.mkdir(parents=True)
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", *map(str, folders)]
    keeper = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert keeper.stdout is not None
        if keeper.stdout.readline() != "there\n":
            pytest.skip("needs the right to mount small disks of its own")
        yield Disks(keeper, folders)
    finally:
        keeper.kill()
        keeper.communicate()
