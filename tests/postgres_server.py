"""A PostgreSQL server of Debian's package on a Unix socket in a temporary folder, for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

START_SECONDS = 60.0


def binaries() -> Path | None:
    """Return the folder of initdb and postgres; None if the package is not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return newest[-1].parent if newest else None


def missing() -> str | None:
    """Return why there can be no server here; None if there can."""
    if binaries() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.getuid() == 0 and not any(user.pw_name == "postgres" for user in pwd.getpwall()):
        return "PostgreSQL does not run as root, and there is no user `postgres`"
    return None


@contextmanager
def running(*, durable: bool = False) -> Iterator[tuple[str, Path]]:
    """Run a server and yield its address and folder.

    Args:
        durable: whether commits are on the disk; tests kill only clients, and need not wait for that.
    """
    bin_folder = binaries()
    assert bin_folder is not None
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    # Not a folder of pytest: those are readable only by the user that runs the tests.
    folder = Path(tempfile.mkdtemp(prefix="fairlead-postgres-"))
    shutil.chown(folder, user)
    options: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if os.getuid() == 0 else {}
    data = folder / "data"
    with (folder / "log").open("w") as log:
        subprocess.run(
            [bin_folder / "initdb", "-N", "-A", "trust", "-U", "fairlead", "-E", "UTF8", "--locale=C",
             "-D", data],
            check=True, stdout=log, stderr=log, cwd=folder, timeout=START_SECONDS, **options,
        )  # fmt: skip
        server = subprocess.Popen(
            [bin_folder / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=",
             "-c", f"fsync={'on' if durable else 'off'}", "-c", "shared_buffers=16MB",
             "-c", "autovacuum=off"],
            stdout=log, stderr=log, cwd=folder, **options,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        ready: list[str | Path] = [
            bin_folder / "pg_isready",
            "-q",
            "-h",
            folder,
            "-U",
            "fairlead",
            "-d",
            "postgres",
        ]
        while subprocess.run(ready, check=False, timeout=START_SECONDS).returncode != 0:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        address = f"postgresql://fairlead@/postgres?host={quote(str(folder), safe='')}"
        yield address, folder
    finally:
        # An immediate shutdown: the data are thrown away.
        server.send_signal(3)
        server.wait(timeout=START_SECONDS)
        shutil.rmtree(folder)
