"""Executes a documentation page as its reader would: runs every command and compares every output.

Blocks run from top to bottom in one folder. A comment before a block changes that: `<!-- test: slow -->` runs
only on request, `<!-- test: background PORT -->` is started, waited for before the next command and runs
until the end, and `<!-- test: setup -->` is what CI has done before. Python whose first line names a file is
written to it; other Python is run. TOML whose first line names a file must be contained in that file.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fairlead.local.probes import GrpcHealth
from tests.service_process import free_address

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>[^>]*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
_NUMBER = re.compile(r"[-+−]?\d[\d,.]*(?:e[-+]?\d+)?")
_READY_SECONDS = 90


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    mark: str

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Return commands and the lines that they print; a backslash at the end joins lines."""
        found: list[tuple[str, list[str]]] = []
        for line in re.sub(r" \\\n *", " ", self.text).splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
        return found

    @property
    def file(self) -> str | None:
        """Return the file that the first line names in a comment."""
        named = re.match(r"# (\S+\.\w+)$", self.text.splitlines()[0])
        return named[1] if named else None


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    content = page.read_text()
    found = [Block(b["language"], b["text"], b["mark"] or "") for b in _BLOCK.finditer(content)]
    assert len(found) * 2 == len(re.findall(r"^```", content, re.M)), "a fence outside every block"
    return found


def assert_prints(command: str, printed: str, expected: list[str]) -> None:
    """Check that a command printed the expected lines.

    `…` matches any text, and as a whole line any lines. Numbers, spaces and empty lines may differ.
    """
    if not expected:
        return
    patterns = []
    for line in filter(str.strip, expected):
        if line.strip() == "…":
            patterns.append(r"(?:.*\n)*?")
            continue
        parts = [_literal(part) for part in " ".join(line.split()).split("…")]
        patterns.append(".*".join(parts) + r"\n")
    shown = "".join(" ".join(line.split()) + "\n" for line in printed.splitlines() if line.strip())
    page = "\n".join(expected)
    assert re.fullmatch("".join(patterns), shown), f"$ {command}\nprinted\n{printed}\nthe page says\n{page}"


def _literal(text: str) -> str:
    return _NUMBER.pattern.join(re.escape(part) for part in _NUMBER.split(text))


@dataclass
class Reader:
    """Executes a page in a temporary folder that links to the checkout's examples."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)
    """Free ports by the ports of the page."""
    printed: dict[str, str] = field(default_factory=dict)
    """Output by command, as written in the page."""
    background: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _starting: list[tuple[subprocess.Popen[bytes], GrpcHealth, Path]] = field(default_factory=list)
    """Background processes that are not known to be ready, and their logs."""

    def __post_init__(self) -> None:
        (self.folder / "examples").symlink_to(ROOT / "examples")

    def read(self, page: Path, *, slow: bool) -> None:
        """Run the blocks; with `slow` also those that take minutes."""
        found = blocks(page)
        for block in found:
            if block.mark.startswith("background "):
                port = block.mark.split()[1]
                self.ports[port] = free_address().split(":")[1]
        for block in found:
            if block.mark == "slow" and not slow:
                continue
            if block.mark == "setup":
                assert "make setup" in block.text
                assert "make setup" in (ROOT / ".ci" / "run").read_text()
                continue
            self._do(block)

    def close(self) -> None:
        """Stop the background processes and check that they drain."""
        for process in self.background:
            process.send_signal(signal.SIGTERM)
        for process in self.background:
            try:
                assert process.wait(30) == 0
            finally:
                process.kill()

    def _do(self, block: Block) -> None:
        if block.language == "console":
            for command, expected in block.commands:
                if block.mark.startswith("background "):
                    self._start(command, block.mark.split()[1])
                else:
                    self.printed[command] = self._run(["bash", "-euo", "pipefail", "-c", self._here(command)])
                    assert_prints(command, self.printed[command], expected)
        elif block.language == "python" and block.file:
            (self.folder / block.file).write_text(block.text)
        elif block.language == "python":
            self.printed[block.text] = self._run([sys.executable, "-c", self._here(block.text)])
        elif block.language == "toml":
            assert block.file, "the first line must name the file"
            held = (self.folder / block.file).read_text().splitlines()
            assert set(block.text.splitlines()[1:]) <= {*held, ""}
        else:
            raise AssertionError(f"a block of {block.language}, which cannot be checked")

    def _run(self, command: list[str]) -> str:
        self._wait_for_background()
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"$ {command[-1]}\n{done.stdout}"
        return done.stdout

    def _start(self, command: str, port: str) -> None:
        log = self.folder / f"{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self._here(command)}"],
                cwd=self.folder,
                env=self._environment(),
                stdout=output,
                stderr=output,
            )
        self.background.append(process)
        self._starting.append((process, GrpcHealth(f"127.0.0.1:{self.ports[port]}"), log))

    def _wait_for_background(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while self._starting:
            process, probe, log = self._starting[0]
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            if asyncio.run(probe()):
                self._starting.pop(0)
            else:
                time.sleep(0.05)

    def _here(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
        return text

    def _environment(self) -> dict[str, str]:
        # The width of the terminal determines where lines break.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "COLUMNS": "160", "NO_COLOR": "1"} | self.environment
