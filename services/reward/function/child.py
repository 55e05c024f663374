"""The process that runs a reward function: imports it, and scores the batches that the service sends.

Run with `python -m services.reward.function.child`. Messages are lines of JSON on its standard streams; what
the function prints becomes standard error. It ends when the service does: its input is closed then.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

Function = Callable[[list[Any], list[str]], Any]
"""Takes prompts and responses; returns a number for each, or a coroutine that does."""

_SHOWN_CHARACTERS = 300
_INSTALLED = ("site-packages", "dist-packages")


def main() -> int:
    """Serve one function until the service ends; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the service finishes its requests
    lines = os.fdopen(os.dup(0), "r", encoding="utf-8")
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    named = str(json.loads(lines.readline())["function"])
    batches = queue.Queue[list[dict[str, Any]]]()
    threading.Thread(target=_read, args=(lines, batches), name="batches", daemon=True).start()
    try:
        module, function = load(named)
    except Exception as error:  # noqa: BLE001 - anything that importing the code of a user raises
        traceback.print_exc()
        _send(output, {"failed": described(error)})
        return 1
    _send(output, {"version": digest(module, named)})
    with asyncio.Runner() as runner:
        while True:
            _send(output, {"results": scored(function, batches.get(), runner)})


def load(named: str) -> tuple[ModuleType, Function]:
    """Import `module:name` or `file.py:name`; return the module and the function.

    Raises:
        Exception: if it cannot be imported, or cannot be called with prompts and responses.
    """
    place, _, name = named.rpartition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{name} is not a function but {type(function).__name__}")
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise TypeError(
            f"{name}{inspect.signature(function)} cannot be called with prompts and responses: {error}"
        ) from error
    return module, function


def _import_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem not in sys.modules else f"reward_function_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def digest(module: ModuleType, named: str) -> str:
    """Return a version: a digest of the name of the function and of the source files that it consists of.

    These are the file of its module, and those of the modules that it has imported from the same folder or
    package; installed packages are not counted.
    """
    own = Path(inspect.getfile(module)).resolve()
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    is_package = "." in module.__name__ or hasattr(module, "__path__")
    root = Path(top.__file__).resolve().parent if is_package and top.__file__ else own.parent
    files = {own}
    for each in list(sys.modules.values()):
        file = Path(getattr(each, "__file__", None) or "")
        if file.suffix == ".py" and (found := file.resolve()).is_relative_to(root):
            inside = found.relative_to(root).parts
            if not any(part in _INSTALLED for part in inside) and (is_package or not _is_installed(root)):
                files.add(found)
    total = hashlib.sha256(named.rpartition(":")[2].encode())
    for file in sorted(files):
        total.update(str(file.relative_to(root)).encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:12]


def _is_installed(folder: Path) -> bool:
    return folder.name in _INSTALLED


def scored(
    function: Function, items: Sequence[dict[str, Any]], runner: asyncio.Runner
) -> list[tuple[float | None, str]]:
    """Return a score for each item, or what is wrong with it.

    If the function fails for a batch, it is called for each item by itself, so that only items that it fails
    for have an error.
    """
    try:
        values = _called(function, items, runner)
    except Exception as error:  # noqa: BLE001 - anything that the code of a user raises
        if len(items) == 1:
            traceback.print_exc()
            return [(None, f"raised {described(error)}")]
        values = None
    if values is None:
        return [result for item in items for result in scored(function, [item], runner)]
    if len(values) != len(items):
        return [(None, f"returned {len(values)} scores for {len(items)} responses")] * len(items)
    return [_checked(value) for value in values]


def _called(function: Function, items: Sequence[dict[str, Any]], runner: asyncio.Runner) -> list[object]:
    found = function([item["prompt"] for item in items], [item["response"] for item in items])
    return list(runner.run(_result(found)) if inspect.isawaitable(found) else found)


async def _result(found: Any) -> Any:  # noqa: ANN401 - what the function of a user returns
    return await found


def _checked(value: object) -> tuple[float | None, str]:
    if isinstance(value, str | bytes):
        return None, f"returned {value[:40]!r} in place of a number"
    try:
        score = float(value)  # type: ignore[arg-type]  # also numbers of numpy and tensors
    except (TypeError, ValueError):
        return None, f"returned {str(value)[:40]} in place of a number"
    return (score, "") if math.isfinite(score) else (None, f"returned {score}, which is not finite")


def described(error: BaseException) -> str:
    """Return an error in one line, with the line of code that raised it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN_CHARACTERS]
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if place.filename != __file__ and "importlib" not in place.filename]
    return f"{text} ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else text


def _read(lines: IO[str], batches: queue.Queue[list[dict[str, Any]]]) -> None:
    for line in lines:
        batches.put(json.loads(line)["items"])
    # The service has ended. The main thread may be in a function that never returns.
    os._exit(0)


def _send(output: IO[str], message: object) -> None:
    try:
        output.write(json.dumps(message) + "\n")
        output.flush()
    except OSError:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
