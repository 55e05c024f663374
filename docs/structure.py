"""Print how large and how connected the code is: `python docs/structure.py [ROOT]`.

The product is `fairlead`, `services` and `trainer`, without generated code. The main paths are the
lists of files in docs/architecture.md.
"""

from __future__ import annotations

import ast
import collections
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("fairlead", "services", "trainer")
FOLDERS = (
    "fairlead/config",
    "services/reward",
    "services/gateway",
    "services/runtime",
    "services/runtime/http",
)
"""Folders whose own modules are counted, without those of the folders below them."""
PASSING = {
    "Unavailable",
    "Overloaded",
    "DeadlineExceeded",
    "StaleWeights",
    "QueueUnavailable",
    "ReplicaLost",
}
"""Errors that pass without a change of the request; sets of them belong under `Transient`."""
PAUSES = {"sleep", "wait", "wait_for", "pause"}


def sources(root: Path) -> dict[str, ast.Module]:
    """Every product file by its path, parsed."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith("fairlead/v1/"):
                found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def repeated_classes(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Class names that more than one file defines, with the files."""
    places = collections.defaultdict(list)
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    return {name: files for name, files in sorted(places.items()) if len(files) > 1}


def retry_loops(trees: dict[str, ast.Module]) -> list[str]:
    """Loops that catch an error, pause and try again, as `file:line`."""
    return [
        f"{name}:{loop.lineno}"
        for name, tree in trees.items()
        for loop in ast.walk(tree)
        if isinstance(loop, ast.While | ast.For | ast.AsyncFor) and _retries(loop)
    ]


def _retries(loop: ast.AST) -> bool:
    inside = list(_own(loop))
    caught = any(isinstance(node, ast.ExceptHandler) for node in inside)
    calls = (node.func for node in inside if isinstance(node, ast.Call))
    names = {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in calls}
    return caught and bool(names & PAUSES)


def _own(loop: ast.AST) -> Iterator[ast.AST]:
    """What is in a loop, without loops and functions within it."""
    for child in ast.iter_child_nodes(loop):
        if not isinstance(child, ast.While | ast.For | ast.AsyncFor | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _own(child)


def transient_sets(trees: dict[str, ast.Module]) -> list[str]:
    """Tuples of two or more errors that pass, as `file:line`."""
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Tuple):
                names = {getattr(element, "id", "") for element in node.elts}
                if len(names & PASSING) > 1:
                    found.append(f"{name}:{node.lineno}")
    return found


def walks(root: Path) -> dict[str, list[str]]:
    """The files of each main path, by the heading that lists them in docs/architecture.md."""
    page = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = {}
    for heading, text in re.findall(
        r"^### (The files of a .+?)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL
    ):
        found[heading] = re.findall(r"^\d+\. `([\w/.]+)`", text, re.MULTILINE)
    return found


def table(root: Path) -> Iterator[tuple[str, object]]:
    """Name and value of each figure."""
    trees = sources(root)
    lines = {name: len((root / name).read_text(encoding="utf-8").splitlines()) for name in trees}
    yield "product files", len(trees)
    yield "lines", sum(lines.values())
    yield "files under 40 lines", sum(count < 40 for count in lines.values())
    yield "longest file, lines", max(lines.values())
    for heading, files in walks(root).items():
        yield heading.lower(), len(files)
    for folder in FOLDERS:
        yield f"modules in {folder}", sum(name.rpartition("/")[0] == folder for name in trees)
    top = (root / "fairlead").iterdir()
    yield (
        "top-level entries of fairlead",
        sum(path.suffix == ".py" or (path / "__init__.py").is_file() for path in top),
    )
    contracts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    yield "layers", next(len(one["layers"]) for one in contracts["contracts"] if "layers" in one)
    yield "loops that retry", len(retry_loops(trees))
    yield "sets of transient errors", len(transient_sets(trees))
    yield "class names defined more than once", len(repeated_classes(trees))


def main() -> None:
    """Print the table, then where the loops, sets and repeated names are."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    for name, value in table(root):
        print(f"{name:40} {value}")
    trees = sources(root)
    print("\nloops that retry:", *retry_loops(trees), sep="\n  ")
    print("\nsets of transient errors:", *transient_sets(trees), sep="\n  ")
    print("\nclass names defined more than once:")
    for name, files in repeated_classes(trees).items():
        print(f"  {name}: {', '.join(files)}")


if __name__ == "__main__":
    main()
