"""A reward that is a Python function of the user: imports it, calls it with a batch, checks what it returns.

The reward service runs it in a process of its own; the verbs that judge answers call it in theirs. Knows
neither.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from types import ModuleType
from typing import Any

from fairlead.errors import ModelLoadError

_SHOWN_CHARACTERS = 300
_INSTALLED = ("site-packages", "dist-packages")
_FORM = (
    "it gets a list of prompts and a list of responses, and returns a list with a number for each response"
)


class RewardFunction:
    """A function of prompts and responses; called by one thread at a time."""

    def __init__(self, named: str) -> None:
        """Import it.

        Args:
            named: `module:name`, where the module may be in the working directory, or `file.py:name`.

        Raises:
            ModelLoadError: if it cannot be imported or called.
        """
        self._runner = asyncio.Runner()
        place, _, name = named.rpartition(":")
        try:
            self.module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
            function: Any = self.module
            for part in name.split("."):
                function = getattr(function, part)
        # The code of a user may raise anything, also SystemExit.
        except (Exception, SystemExit) as error:
            raise ModelLoadError(described(error)) from error
        if not callable(function):
            raise ModelLoadError(f"{name} is not a function but {type(function).__name__}")
        _check_signature(name, function)
        self._function = function
        try:
            self.version = digest(self.module, named)
        except OSError as error:
            raise ModelLoadError(f"its source cannot be read: {error}") from error
        """A digest of the source that was imported."""

    def close(self) -> None:
        """Close the event loop of a function that is `async`."""
        self._runner.close()

    def scores(self, prompts: Sequence[object], responses: Sequence[str]) -> list[float | str]:
        """Return a score for each response, or what is wrong with it.

        If the function fails for a batch, it is called for each response by itself, so that only responses
        that it fails for have an error.

        Args:
            prompts: text, or the messages of a conversation as dicts, for each response.
            responses: texts.
        """
        try:
            found = self._called(prompts, responses)
            if isinstance(found, str | bytes | Mapping | Set) or not isinstance(found, Iterable):
                wrong = f"returned {_shown(found)} in place of a list: {_FORM}"
                return [wrong] * len(responses)
            values = list(found)  # runs the code of a generator
        except Exception as error:  # noqa: BLE001 - anything that the code of a user raises
            if len(responses) == 1:
                traceback.print_exc()
                return [f"raised {described(error)}"]
            return [
                result
                for prompt, response in zip(prompts, responses, strict=True)
                for result in self.scores([prompt], [response])
            ]
        if len(values) != len(responses):
            return [f"returned {len(values)} scores for {len(responses)} responses"] * len(responses)
        return [_checked(value) for value in values]

    def _called(self, prompts: Sequence[object], responses: Sequence[str]) -> object:
        found = self._function(list(prompts), list(responses))
        return self._runner.run(_result(found)) if inspect.isawaitable(found) else found


def digest(module: ModuleType, named: str) -> str:
    """Return a version: a digest of the name of the function and of the source files that it consists of.

    These are the file of its module, and those of the modules that it has imported from the same folder or
    package; installed packages are not counted. A module of Python itself may have no file.

    Raises:
        OSError: if a file cannot be read.
    """
    total = hashlib.sha256(named.rpartition(":")[2].encode())
    if not getattr(module, "__file__", None):
        return total.hexdigest()[:12]
    own = Path(inspect.getfile(module)).resolve()
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    is_package = "." in module.__name__ or hasattr(module, "__path__")
    root = Path(top.__file__).resolve().parent if is_package and top.__file__ else own.parent
    files = {own}
    for each in list(sys.modules.values()):
        file = Path(getattr(each, "__file__", None) or "")
        # Some modules of libraries, such as torch.classes, name files that do not exist.
        if file.suffix == ".py" and file.is_file() and (found := file.resolve()).is_relative_to(root):
            inside = found.relative_to(root).parts
            if not any(part in _INSTALLED for part in inside) and (is_package or not _is_installed(root)):
                files.add(found)
    for file in sorted(files):
        total.update(str(file.relative_to(root)).encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:12]


def _is_installed(folder: Path) -> bool:
    return folder.name in _INSTALLED


def described(error: BaseException) -> str:
    """Return an error in one line, with the line of the user's code that raised it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN_CHARACTERS]
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if place.filename != __file__ and "importlib" not in place.filename]
    return f"{text} ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else text


def _check_signature(name: str, function: Any) -> None:  # noqa: ANN401 - what a user has written
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind([], [])
    except TypeError as error:
        raise ModelLoadError(
            f"{name}{signature} cannot be called with prompts and responses: {error}; {_FORM}"
        ) from error


def _import_module(name: str) -> ModuleType:
    # A program started by its own name, unlike `python -m`, does not look in the working directory.
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


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


async def _result(found: Any) -> Any:  # noqa: ANN401 - what the function of a user returns
    return await found


def _checked(value: object) -> float | str:
    if isinstance(value, str | bytes):
        return f"returned {value[:40]!r} in place of a number"
    try:
        score = float(value)  # type: ignore[arg-type]  # also numbers of numpy and tensors
    except Exception:  # noqa: BLE001 - the value may be of any class
        return f"returned {_shown(value)} in place of a number"
    return score if math.isfinite(score) else f"returned {score}, which is not finite"


def _shown(value: object) -> str:
    """Return the beginning of what a function returned, without quotes unless it is a text."""
    try:
        return repr(value)[:40]
    except Exception:  # noqa: BLE001 - the value may be of any class
        return f"a {type(value).__name__}"
