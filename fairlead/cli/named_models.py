"""Models as the verbs name them: a running service, a folder or hub id to start a service for, or a function.

`serving` gives the addresses of a policy or reward model; `Policy` and `Scorer` use them. A function is the
user's own Python: `module:function` or `file.py:function`, as in `reward.function`; load it before anything
is started, so that a wrong name is reported at once.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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


def addresses_of(named: str) -> list[str]:
    """Return the addresses that a comma-separated list names; empty if it names something else."""
    parts = [part.strip() for part in named.split(",")]
    return parts if all(map(_ADDRESS.fullmatch, parts)) else []


def is_function(named: str) -> bool:
    """Return whether the text has the form `module:function` or `file.py:function`."""
    return bool(_FUNCTION.fullmatch(named)) and not addresses_of(named)


def contents(**named: str) -> dict[str, object]:
    """Return digests of the folders and files among some names, for the settings of samples: training
    may have replaced a model under its name.

    Args:
        named: models as the verbs name them, by their flags.
    """
    from fairlead.inputs.digests import Digests

    found = {}
    for flag, name in named.items():
        if not name or addresses_of(name) or is_function(name):
            continue
        path = Path(name).expanduser()
        with suppress(OSError):  # the service that loads it reports the error
            if path.exists():
                found[flag] = Digests(Path(os.devnull)).of(path).digest[:12]
    return {"contents": found} if found else {}


@contextmanager
def serving(kind: Kind, named: str, *, ready_seconds: float) -> Iterator[list[str]]:
    """Yield the addresses of a model for the duration of the block: those given, or that of a service of its
    own.
    """
    if found := addresses_of(named):
        yield found
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
        # Answers of a slow machine may take longer than connections last; nothing is balanced here.
        "server.max_connection_age_seconds": "86400",
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


class FunctionScorer:
    """A function of the user, in a thread of its own."""

    def __init__(self, named: str, *, field: str) -> None:
        """Import the function.

        Args:
            named: as on the command line.
            field: the flag, for errors.

        Raises:
            ConfigError: if it cannot be imported or called.
        """
        from fairlead.errors import ConfigError, ModelLoadError
        from fairlead.reward_function import RewardFunction

        try:
            self._function = RewardFunction(named)
        except ModelLoadError as error:
            allowed = f"module:function or file.py:function of prompts and responses; {error}"
            raise ConfigError(field, got=named, allowed=allowed) from error
        self._named = named
        self._thread = ThreadPoolExecutor(1, "reward-function")

    @property
    def version(self) -> str:
        """See `Scorer`; with a digest of the source, so that samples of another one are not continued."""
        return f"{self._named} {self._function.version}"

    async def scores(self, prompt: Prompt, answers: Sequence[str]) -> list[float]:
        """See `Scorer`; one call for all answers."""
        from fairlead.errors import FairleadError

        given = (
            prompt
            if isinstance(prompt, str)
            else [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
        )
        work = partial(self._function.scores, [given] * len(answers), answers)
        found = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        for each, answer in zip(found, answers, strict=True):
            if isinstance(each, str):
                raise FairleadError(f"{self._named} {each}, for the answer {answer[:80]!r}")
        return [float(each) for each in found]

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
        self._function.close()


@asynccontextmanager
async def scorer_at(addresses: Sequence[str], *, timeout_seconds: float) -> AsyncIterator[RewardScorer]:
    """Connect to a reward service.

    Raises:
        FairleadError: if it does not answer.
    """
    from fairlead.clients import AsyncRewardClient

    async with AsyncRewardClient(list(addresses), **connection(timeout_seconds)) as client:
        info = await client.info()
        yield RewardScorer(client, f"{info.model.model_id} {info.model_version}")


def _accepts_connections(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False
