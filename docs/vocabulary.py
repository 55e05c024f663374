"""Find the words that the project does not use: `python docs/vocabulary.py [--names] [PATH ...]`.

The list is the table "Words not used" of docs/glossary.md. The script reads documents without their code,
Python files for docstrings, string literals, comments and names, and other files for comments. It exits with
1 when it finds anything.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
SKIPPED = ("docs/glossary.md", "docs/vocabulary.py", "fairlead/v1/", "LICENSE", "tests/golden/v1/")
"""The list itself, and files that are generated or not ours."""
COMMENTED = (".lua", ".proto", ".toml", ".yaml", ".yml", ".sh", "Makefile", "Dockerfile")
"""Files of which only comments are read."""
_WIRE_FIELD = ("alone",)
"""Field of the wire for exclusive requests, named before the word was retired."""
ALLOWED: dict[str, tuple[str, ...]] = {
    "docs/results-real-text.md": ("the plays alone probably",),
    "examples/parcel_help/corpus.py": ("thank you for your patience .",),
    "fairlead/nn/loading.py": ("floor_scale", "floor scale"),
    "tests/unit/fairlead/nn/test_equal_ways.py": ("floor_scale", "floor scale"),
    "fairlead/evaluation/refusals.py": ("tell you|tell anyone", "tell from"),
    "fairlead/clients/policy.py": _WIRE_FIELD,
    "fairlead/clients/reference.py": _WIRE_FIELD,
    "fairlead/clients/reward.py": _WIRE_FIELD,
    "services/policy/servicer.py": _WIRE_FIELD,
    "services/reference/servicer.py": _WIRE_FIELD,
    "services/reward/servicer.py": _WIRE_FIELD,
    "tests/scripted_services.py": _WIRE_FIELD,
    "tests/unit/services/policy/test_generate_batch.py": _WIRE_FIELD,
    "tests/unit/services/rollout_worker/test_worker_failures.py": _WIRE_FIELD,
}
"""Words that are right all the same, by file."""

Finding = tuple[str, int, str, str]
"""File, line, the word found, what to write instead."""


def retired() -> list[tuple[re.Pattern[str], str]]:
    """The listed words as patterns, each with what to write instead.

    Raises:
        ValueError: if the glossary has no such table.
    """
    text = GLOSSARY.read_text(encoding="utf-8")
    _, heading, table = text.partition("\n## Words not used\n")
    if not heading:
        raise ValueError("docs/glossary.md has no section `Words not used`")
    rows = re.findall(
        r"^\| (?!not\b)((?:[^|\\]|\\\|)+) \| ([^|]+) \|", table.partition("\n## ")[0], re.MULTILINE
    )
    words = [(word.strip(), instead.strip()) for cell, instead in rows for word in cell.split(",")]
    return [(re.compile(rf"(?<![\w-]){word}(?![\w-])", re.IGNORECASE), instead) for word, instead in words]


def findings(paths: Sequence[str], *, names: bool = True) -> Iterator[Finding]:
    """Every listed word in the tracked files below some paths.

    Args:
        paths: relative to the root; all where there is none.
        names: whether identifiers in Python are looked at too.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = retired()
    for name in listed.stdout.splitlines():
        if name.startswith(SKIPPED) or not (ROOT / name).is_file():
            continue
        for line, text in _texts(name, names=names):
            read = text
            for allowed in ALLOWED.get(name, ()):
                read = read.replace(allowed, "")
            for pattern, instead in words:
                if found := pattern.search(read):
                    yield name, line, found[0], instead


def _texts(name: str, *, names: bool) -> Iterator[tuple[int, str]]:
    path = ROOT / name
    if name.endswith(".md"):
        yield from _prose(path.read_text(encoding="utf-8"))
    elif name.endswith(".py"):
        yield from _python(path.read_text(encoding="utf-8"), names=names)
    elif name.endswith(COMMENTED):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if found := re.search(r"(#|--|//)\s(.*)", line):
                yield number, found[2]


def _prose(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a document, without blocks of code, code within lines, and addresses of links."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", "` `", line)


def _python(text: str, *, names: bool) -> Iterator[tuple[int, str]]:
    """Strings and comments as they are; names cut into their words."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif names and token.type == tokenize.NAME:
            yield token.start[0], re.sub(r"_|(?<=[a-z])(?=[A-Z])", " ", token.string)


def main(arguments: Sequence[str]) -> int:
    """Print every finding; return the exit code."""
    found = sorted(
        set(findings([one for one in arguments if one != "--no-names"], names="--no-names" not in arguments))
    )
    for name, line, word, instead in found:
        print(f"{name}:{line}: `{word}`: write {instead}")
    print(f"{len(found)} words that docs/glossary.md lists as not used", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
