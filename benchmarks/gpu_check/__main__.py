"""Measure on one GPU what cannot be measured without: `python -m benchmarks.gpu_check --out FOLDER`.

Each section runs in a process of its own with a time limit, so that one that fails does not stop the others.
Writes gpu_check.json and gpu_check.md after every section. This process needs the standard library only;
a section that lacks a package is skipped and says which.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu_check import figures, report
from benchmarks.gpu_check.report import Outcome

SECTIONS: Mapping[str, int] = {
    "environment": 60,
    "parity": 75,
    "generation": 150,
    "swap": 90,
    "training": 180,
    "scoring": 60,
    "idle": 240,
}
"""Time limit of each section in seconds; one that ends early leaves its time to those after it."""
TOTAL_SECONDS = 690
"""Time limit of all sections together."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run every section; return 1 if one failed."""
    options = _flags(argv)
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    date = time.strftime("%Y-%m-%d", time.gmtime())
    size = ", tiny sizes that measure nothing" if options.tiny else ""
    title = f"{date}, device {options.device}{size}"
    outcomes: list[Outcome] = []
    for outcome in _outcomes(options, folder, end):
        outcomes.append(outcome)
        report.write(folder, title, outcomes)
        print(f"{outcome.section}: {outcome.seconds:.0f} s {outcome.failure or 'complete'}", flush=True)
    print((folder / "gpu_check.md").read_text())
    return int(any(outcome.failure for outcome in outcomes))


def _outcomes(options: argparse.Namespace, folder: Path, end: float) -> Iterator[Outcome]:
    with (folder / "sections.log").open("w") as log:
        for name in options.sections or SECTIONS:
            limit = min(SECTIONS[name] * options.scale_limits, end - time.monotonic())
            yield _run(name, options, folder, limit, log.fileno())


def _run(name: str, options: argparse.Namespace, folder: Path, limit: float, log: int) -> Outcome:
    """Run a section in a process of its own, for at most `limit` seconds."""
    if limit < 1:
        return Outcome(name, 0.0, (), "no time was left for it")
    file = folder / f"{name}.jsonl"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_check.section", name, str(file), options.device]
    command += ["tiny"] if options.tiny else []
    start = time.monotonic()
    failure = ""
    # A group of its own, since a section may start processes.
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        code = process.wait(limit)
        failure = f"exit code {code}; sections.log has its output" if code else ""
    except subprocess.TimeoutExpired:
        failure = f"stopped after {limit:.0f} s"
    finally:
        _kill_group(process)
    found = tuple(figures.read(file))
    file.unlink(missing_ok=True)
    return Outcome(name, time.monotonic() - start, found, failure)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(SECTIONS)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"any of {names}; without names all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, which measure nothing; for tests")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/gpu_check"), help="folder")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="time limit of all sections")
    parser.add_argument("--scale-limits", type=float, default=1.0, help="factor of the limit of each section")
    options = parser.parse_args(argv)
    for name in options.sections:
        if name not in SECTIONS:
            parser.error(f"no section {name!r}; there are {names}")
    return options


if __name__ == "__main__":
    sys.exit(main())
