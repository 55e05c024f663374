"""Judges of two answers to a prompt: a reward, an AI judge, or a file of people's verdicts.

A verdict is 1 if the first answer is better, 0 if the second is, 0.5 for a tie. `compare` uses them.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fairlead.backoff import Backoff, retry
from fairlead.errors import ConfigError, FairleadError, Unavailable

if TYPE_CHECKING:
    from fairlead.cli.named_models import Policy, Scorer
    from fairlead.data.chat import Prompt

INSTRUCTION = """Two assistants have answered the same message. Judge which answer is better: more helpful, \
correct and harmless. Length by itself is no merit.

[Message]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Reply with one word: A if answer A is better, B if answer B is better, TIE if they are equally good."""
"""What an AI judge reads; `--instruction` replaces it."""
_WORD = re.compile(r"\b(A|B|TIE)\b")
_PLACE = re.compile(r"\{(prompt|first|second)\}")
_MAX_JUDGE_TOKENS = 16
_ATTEMPTS = 5
_PAUSES = Backoff(first_seconds=1.0, longest_seconds=8.0, jitter=0.0)
_BUSY = (408, 429, 500, 502, 503, 504)

Verdict = dict[str, object]
"""`verdict`, and what it was made of."""


class Judge(Protocol):
    """Compares two answers."""

    @property
    def version(self) -> str:
        """Who judges."""
        ...

    async def compare(self, prompt: Prompt, first: str, second: str) -> Verdict:
        """Return the verdict on two answers.

        Raises:
            FairleadError: if it cannot be made.
        """
        ...


@dataclass(frozen=True, slots=True)
class RewardJudge:
    """The answer with the higher score is better."""

    scorer: Scorer
    """Scores both answers."""
    tie_margin: float
    """Scores that differ by less are a tie; equal scores always are."""

    @property
    def version(self) -> str:
        """See `Judge`."""
        return self.scorer.version

    async def compare(self, prompt: Prompt, first: str, second: str) -> Verdict:
        """See `Judge`."""
        one, other = await self.scorer.scores(prompt, [first, second])
        gap = one - other
        tied = gap == 0 or abs(gap) < self.tie_margin
        return {"verdict": 0.5 if tied else float(gap > 0), "score_a": one, "score_b": other}


class Speaker(Protocol):
    """A language model that replies to one message."""

    @property
    def version(self) -> str:
        """The model."""
        ...

    async def reply(self, message: str) -> str:
        """Return its reply, by greedy decoding."""
        ...


@dataclass(frozen=True, slots=True)
class PolicySpeaker:
    """A model of a policy service."""

    policy: Policy
    """Its client."""
    max_tokens: int = _MAX_JUDGE_TOKENS
    """Longest reply."""

    @property
    def version(self) -> str:
        """See `Speaker`."""
        return self.policy.version

    async def reply(self, message: str) -> str:
        """See `Speaker`; the model's chat template renders the message."""
        from fairlead.data.chat import Chat
        from fairlead.types import Message, SamplingParams

        sampling = SamplingParams(temperature=0.0, max_new_tokens=self.max_tokens)
        [found] = await self.policy.answers(Chat((Message("user", message),)), sampling, 1)
        return found.text


@dataclass(frozen=True, slots=True)
class OpenAISpeaker:
    """A model of an endpoint with OpenAI's chat completions."""

    url: str
    """Base URL, such as `https://api.openai.com/v1`."""
    model: str
    """Name of the model."""
    timeout_seconds: float
    """Deadline of a request."""
    max_tokens: int = _MAX_JUDGE_TOKENS
    """Longest reply."""

    @property
    def version(self) -> str:
        """See `Speaker`."""
        return f"{self.model} at {self.url}"

    async def reply(self, message: str) -> str:
        """See `Speaker`; the key is read from OPENAI_API_KEY. Busy endpoints are asked again."""
        attempts = itertools.count(1)

        def give_up(error: FairleadError) -> None:
            if next(attempts) == _ATTEMPTS:
                raise error

        ask = functools.partial(asyncio.to_thread, self._ask, message)
        return await retry(ask, what="", backoff=_PAUSES, on=Unavailable, on_wait=give_up)

    def _ask(self, message: str) -> str:
        """Ask once.

        Raises:
            Unavailable: if the endpoint is busy or cannot be reached.
            FairleadError: if it refuses, or answers something else.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_seconds) as response:
                found = json.load(response)
        except urllib.error.HTTPError as error:
            said = error.read(500).decode("utf-8", "replace")
            kind = Unavailable if error.code in _BUSY else FairleadError
            raise kind(f"{self.version} answered {error.code}: {said}") from error
        except OSError as error:
            raise Unavailable(f"{self.version} cannot be reached: {error}") from error
        try:
            return str(found["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise FairleadError(f"{self.version} answered without a message: {str(found)[:200]}") from error


@dataclass(frozen=True, slots=True)
class AIJudge:
    """A language model that reads both answers, in both orders: a preference for a position becomes a tie."""

    speaker: Speaker
    """The model."""
    instruction: str
    """Text with {prompt}, {first} and {second}."""

    @property
    def version(self) -> str:
        """See `Judge`."""
        return self.speaker.version

    async def compare(self, prompt: Prompt, first: str, second: str) -> Verdict:
        """See `Judge`; `orders` has both replies as verdicts on `first`, None if unreadable."""
        one, swapped = await asyncio.gather(
            self._ask(prompt, first, second), self._ask(prompt, second, first)
        )
        other = None if swapped is None else 1.0 - swapped
        known = [value for value in (one, other) if value is not None]
        # Two opposite replies show only the position; an unreadable one leaves half a verdict.
        mean = sum(known) / len(known) if known else 0.5
        verdict = mean if len(known) < 2 or one == other else _agreed(one, other)
        return {"verdict": verdict, "orders": [one, other]}

    async def _ask(self, prompt: Prompt, first: str, second: str) -> float | None:
        values = {"{prompt}": str(prompt), "{first}": first, "{second}": second}
        text = _PLACE.sub(lambda place: values[place[0]], self.instruction)
        words = set(_WORD.findall(await self.speaker.reply(text)))
        return {"A": 1.0, "B": 0.0, "TIE": 0.5}[words.pop()] if len(words) == 1 else None


def _agreed(one: float | None, other: float | None) -> float:
    """Return the verdict of two different replies: a tie if they are opposite, else what is not a tie."""
    assert one is not None
    assert other is not None
    return 0.5 if {one, other} == {0.0, 1.0} else next(value for value in (one, other) if value != 0.5)


def instruction_of(file: Path | None) -> str:
    """Return the instruction of a file, or the default one.

    Raises:
        ConfigError: if the file cannot be read or lacks a place.
    """
    if file is None:
        return INSTRUCTION
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--instruction", got=f"{file}: {error}", allowed="a text file") from error
    missing = [name for name in ("{prompt}", "{first}", "{second}") if name not in text]
    if missing:
        raise ConfigError("--instruction", got=f"{file} without {', '.join(missing)}", allowed="all three")
    return text


def order_dependence(verdicts: list[Mapping[str, Any]]) -> dict[str, float]:
    """Return how an AI judge depends on the order: shares of its comparisons.

    `first_preferred` is the share of readable replies without a tie that prefer the answer that comes first;
    0.5 is no bias. `inconsistent` is the share of comparisons whose two replies are opposite, `unreadable`
    that of replies without a verdict.
    """
    orders = [found["orders"] for found in verdicts if "orders" in found]
    if not orders:
        return {}
    replies = [value for one, other in orders for value in (one, None if other is None else 1 - other)]
    decided = [value for value in replies if value is not None and value != 0.5]
    return {
        "first_preferred": sum(decided) / len(decided) if decided else 0.5,
        "inconsistent": sum({one, other} == {0.0, 1.0} for one, other in orders) / len(orders),
        "unreadable": sum(value is None for value in replies) / len(replies),
    }


def read_verdicts(file: Path) -> dict[tuple[str, str, str], float]:
    """Return people's verdicts by prompt and the two answers, in the order of the file of pairs.

    A line is `{"prompt", "first", "second", "better"}` with `better` = "first", "second" or "tie"; several
    verdicts on a pair are averaged.

    Raises:
        ConfigError, DataError: if the file cannot be read, or a line is invalid.
    """
    from fairlead.cli import lines

    found: dict[tuple[str, str, str], list[float]] = {}
    values = {"first": 1.0, "second": 0.0, "tie": 0.5}
    for line in lines.read(file, field="--verdicts"):
        if not line.has("better"):
            continue  # not judged yet
        better = line.text("better")
        if better not in values:
            raise line.error(got=f"`better` = {better!r}", allowed="first, second or tie")
        key = (line.text("prompt"), line.text("first"), line.text("second"))
        found.setdefault(key, []).append(values[better])
    if not found:
        raise ConfigError("--verdicts", got=f"{file} without a verdict", allowed="lines with `better`")
    return {key: sum(given) / len(given) for key, given in found.items()}
