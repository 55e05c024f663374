"""Models as the verbs name them: a running service, a folder or hub id to start a service for, or a function.

`serving` gives the addresses of a policy or reward model; `Policy` and `Scorer` use them. A function scores
with the user's own Python: `module:function` or `file.py:function`.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import math
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol

from fairlead.cli.output import connection, need

if TYPE_CHECKING:
    from fairlead.clients import AsyncPolicyClient, AsyncRewardClient
    from fairlead.data.chat import Prompt
    from fairlead.types import Completion, SamplingParams

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):\d+")
_FUNCTION = re.compile(r"([A-Za-z_][\w.]*|\S+\.py):[A-Za-z_]\w*")
_POLL_SECONDS = 0.2
_STOP_SECONDS = 30.0

Kind = Literal["policy", "reward"]
Function = Callable[[object, str], float]
"""Returns the score of an answer to a prompt: text, or the messages of a conversation as dicts."""


def addresses_of(named: str) -> list[str]:
    """Return the addresses that a comma-separated list names; empty if it names something else."""
    parts = [part.strip() for part in named.split(",")]
    return parts if all(map(_ADDRESS.fullmatch, parts)) else []


def is_function(named: str) -> bool:
    """Return whether the text has the form `module:function` or `file.py:function`."""
    return bool(_FUNCTION.fullmatch(named)) and not addresses_of(named)


@contextmanager
def serving(kind: Kind, named: str, *, ready_seconds: float) -> Iterator[list[str]]:
    """Yield the addresses of a model for the duration of the block: those given, or that of a service of its
    own.

    A function has none.
    """
    if found := addresses_of(named):
        yield found
    elif is_function(named):
        yield []
    else:
        with model_service(kind, named, ready_seconds=ready_seconds) as address:
            yield [address]


@contextmanager
def model_service(kind: Kind, model: str, *, ready_seconds: float) -> Iterator[str]:
    """Run a service with a model for the duration of the block; yield its address once it answers.

    Args:
        kind: the service.
        model: folder or hub id.
        ready_seconds: how long loading may take.

    Raises:
        ModelLoadError: if the service ended; it has written the reason to standard error.
        DeadlineExceeded: if loading took too long.
    """
    from fairlead.errors import DeadlineExceeded, ModelLoadError
    from fairlead.local.addresses import LOOPBACK, Ports

    need("torch")
    address = f"{LOOPBACK}:{Ports().free(kind)}"
    settings = {
        f"{kind}.path": model,
        f"{kind}.bind": address,
        "observe.metrics_port": "-1",
        "observe.log_level": "WARNING",
        **({"policy.serve_initial": "true"} if kind == "policy" else {}),
    }
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    # In a new session, so that Ctrl-C reaches only this command, which then ends the service.
    process = subprocess.Popen(
        [sys.executable, "-m", f"services.{kind}", *flags], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + ready_seconds
        while not _accepts_connections(address):
            if process.poll() is not None:
                raise ModelLoadError(
                    f"the {kind} service for {model!r} ended with exit code {process.returncode}"
                )
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"the model {model!r} was not loaded within {ready_seconds:g} s")
            time.sleep(_POLL_SECONDS)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that answers prompts."""

    client: AsyncPolicyClient
    """Client of its service."""
    version: str
    """Model and version of its weights."""
    max_samples: int
    """Most answers of one request."""

    async def answers(self, prompt: Prompt, sampling: SamplingParams, count: int) -> list[Completion]:
        """Return `count` answers; more than a request allows are asked for in several, with other seeds.

        Raises:
            FairleadError: as `AsyncPolicyClient.generate`.
        """
        from dataclasses import replace

        found: list[Completion] = []
        while len(found) < count:
            # The seed of a sample depends on its number within a request.
            seeded = replace(sampling, seed=sampling.seed + (len(found) << 32))
            found += await self.client.generate(
                prompt if isinstance(prompt, str) else prompt.messages,
                seeded,
                num_samples=min(self.max_samples, count - len(found)),
            )
        return found


@asynccontextmanager
async def policy_at(addresses: Sequence[str], *, timeout_seconds: float) -> AsyncIterator[Policy]:
    """Connect to a policy service.

    Raises:
        FairleadError: if it does not answer.
    """
    from fairlead.clients import AsyncPolicyClient

    async with AsyncPolicyClient(list(addresses), **connection(timeout_seconds)) as client:
        info = await client.info()
        version = f"{info.model.model_id} {info.weight_version}"
        yield Policy(client, version, info.max_samples)


class Scorer(Protocol):
    """Scores answers."""

    @property
    def version(self) -> str:
        """What scores, with its version."""
        ...

    async def scores(self, prompt: Prompt, answers: Sequence[str]) -> list[float]:
        """Return the score of each answer; higher is better.

        Raises:
            FairleadError: if an answer cannot be scored.
        """
        ...


@dataclass(frozen=True, slots=True)
class RewardScorer:
    """A reward service."""

    client: AsyncRewardClient
    """Its client."""
    version: str
    """Model and version."""

    async def scores(self, prompt: Prompt, answers: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        from fairlead.types import Priority, TextPair

        text, messages = (prompt, ()) if isinstance(prompt, str) else ("", prompt.messages)
        items = [TextPair(text, answer, messages) for answer in answers]
        return list((await self.client.score(items, priority=Priority.BULK)).scores)


@dataclass(frozen=True, slots=True)
class FunctionScorer:
    """A function of the user."""

    function: Function
    """Called with a prompt and an answer."""
    version: str
    """`module:function`."""

    async def scores(self, prompt: Prompt, answers: Sequence[str]) -> list[float]:
        """See `Scorer`; the function runs in a thread, one answer after the other."""
        return await asyncio.to_thread(lambda: [self._score(prompt, answer) for answer in answers])

    def _score(self, prompt: Prompt, answer: str) -> float:
        from fairlead.errors import FairleadError

        given = (
            prompt
            if isinstance(prompt, str)
            else [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
        )
        try:
            value = self.function(given, answer)
        except Exception as error:
            raise FairleadError(
                f"{self.version} raised {type(error).__name__}: {error} for the answer {answer[:80]!r}"
            ) from error
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        raise FairleadError(
            f"{self.version} returned {value!r} for the answer {answer[:80]!r}, allowed: a finite number"
        )


@asynccontextmanager
async def scorer_of(
    named: str, addresses: Sequence[str], *, field: str, timeout_seconds: float
) -> AsyncIterator[Scorer]:
    """Connect to a reward service, or load a function.

    Args:
        named: as on the command line.
        addresses: what `serving` gave for it.
        field: the flag, for errors.
        timeout_seconds: deadline of a request.

    Raises:
        ConfigError: if there is no such function.
        FairleadError: if the service does not answer.
    """
    if not addresses:
        yield FunctionScorer(load_function(named, field=field), named)
        return
    from fairlead.clients import AsyncRewardClient

    async with AsyncRewardClient(list(addresses), **connection(timeout_seconds)) as client:
        info = await client.info()
        yield RewardScorer(client, f"{info.model.model_id} {info.model_version}")


def load_function(named: str, *, field: str) -> Function:
    """Return the function of an installed module, one in the working directory, or a file.

    Raises:
        ConfigError: if the module cannot be imported or has no such function.
    """
    from fairlead.errors import ConfigError

    module, _, name = named.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = _load_file(module) if module.endswith(".py") else importlib.import_module(module)
        function = getattr(loaded, name)
    except (ImportError, AttributeError, SyntaxError, OSError) as error:
        allowed = "module:function of a module that can be imported, or file.py:function"
        raise ConfigError(field, got=f"{named} ({error})", allowed=allowed) from error
    if not callable(function):
        raise ConfigError(field, got=f"{named}, of type {type(function).__name__}", allowed="a function")
    found: Function = function
    return found


def _load_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _accepts_connections(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False
