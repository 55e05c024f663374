"""A page of the documentation, done as its reader would: every command run, every output compared.

Blocks are run from top to bottom in one folder. A comment before a block says more: `<!-- test: slow -->` is
run only when asked for, `<!-- test: background PORT -->` runs until the end and is waited for,
`<!-- test: setup -->` is what CI has done before. Python whose first line names a file is written there,
other Python is run; TOML whose first line names a file must stand in that file.
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
    """One fenced block."""

    language: str
    text: str
    mark: str

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """(command, the lines that it prints) in order; a backslash at the end joins lines, as in a shell."""
        found: list[tuple[str, list[str]]] = []
        for line in re.sub(r" \\\n *", " ", self.text).splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
        return found

    @property
    def file(self) -> str | None:
        """The file that the first line names in a comment."""
        named = re.match(r"# (\S+\.\w+)$", self.text.splitlines()[0])
        return named[1] if named else None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    content = page.read_text()
    found = [Block(b["language"], b["text"], b["mark"] or "") for b in _BLOCK.finditer(content)]
    assert len(found) * 2 == len(re.findall(r"^```", content, re.M)), "a fence that no block owns"
    return found


def assert_prints(command: str, printed: str, expected: list[str]) -> None:
    """`…` stands for anything, alone on a line for any lines; numbers, spaces, empty lines may be others."""
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
    told = "\n".join(expected)
    assert re.fullmatch("".join(patterns), shown), f"$ {command}\nprinted\n{printed}\nthe page says\n{told}"


def _literal(text: str) -> str:
    return _NUMBER.pattern.join(re.escape(part) for part in _NUMBER.split(text))


@dataclass
class Reader:
    """Does what a page says, in a folder of its own beside the checkout's examples."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)
    """Free ports in place of the page's."""
    printed: dict[str, str] = field(default_factory=dict)
    """Output by command, as the page has it."""
    background: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "examples").symlink_to(ROOT / "examples")

    def read(self, page: Path, *, slow: bool) -> None:
        """Runs the blocks; with `slow` those that take minutes as well."""
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
        """Ends what runs in the background, and checks that it drains."""
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
            assert block.file, "say which file it is of"
            held = (self.folder / block.file).read_text().splitlines()
            assert set(block.text.splitlines()[1:]) <= {*held, ""}
        else:
            raise AssertionError(f"a block of {block.language}: nobody knows how to check it")

    def _run(self, command: list[str]) -> str:
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
        probe = GrpcHealth(f"127.0.0.1:{self.ports[port]}")
        deadline = time.monotonic() + _READY_SECONDS
        while not asyncio.run(probe()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def _here(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
        return text

    def _environment(self) -> dict[str, str]:
        # A terminal's width decides where lines break.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "COLUMNS": "160", "NO_COLOR": "1"} | self.environment
