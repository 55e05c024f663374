"""The environments of TRL, one per release, which the first call creates under benchmarks/out."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.result import OUT
from fairlead.errors import ProcessFailed

_READY = "ready.txt"
_WITH = ("torch==2.13.0", "transformers==5.23.0", "peft==0.21.2")


def packages(release: str) -> tuple[str, ...]:
    """Return what the environment of a release consists of, in pip's words."""
    return (f"trl=={release}", *_WITH)


def is_installed(release: str) -> bool:
    """Return whether the environment of a release is there with these packages."""
    ready = _folder(release) / _READY
    return ready.exists() and ready.read_text().split() == list(packages(release))


def interpreter(release: str) -> Path:
    """Return the interpreter of a release; the folder may be a link to another checkout's.

    Raises:
        ProcessFailed: if its packages cannot be installed.
    """
    wanted = packages(release)
    folder = _folder(release)
    python = (folder / "bin" / "python").absolute()
    if not is_installed(release):
        print(f"installing {', '.join(wanted)} into {folder}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise ProcessFailed(f"pip could not install {', '.join(wanted)}; its output is above")
        (folder / _READY).write_text(" ".join(wanted))
    return python


def _folder(release: str) -> Path:
    return OUT / f"trl-{release}"
