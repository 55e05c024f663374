"""A language model ranks the answers to a task: every pair in both orders, and no guess.

`fairlead feedback judge` uses it. See `AIJudge` for the judge of `compare`, which reads two answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.errors import ConfigError

if TYPE_CHECKING:
    from fairlead.cli.judges import Speaker

ALL_PAIRS = 4
"""Most answers of which every two are compared; more are sorted."""
_VERDICT = re.compile(r"(?:(?i:(?:final )?(?:verdict|answer|judgment))\W*)?(A|B|(?i:tie))")
_MARKS = " \t*_`'\".,:!()[]#>"
_REPLY_CHARACTERS = 4_000
"""Of a reply that are kept, its end: there the verdict is."""
_BULLET = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+")
_ENDING = """Which answer is better by the rubric? The order of the answers has no meaning, and length by \
itself is no merit. End with a line that has one word only: A if answer A is better, B if answer B is \
better, TIE if they are equally good."""


@dataclass(frozen=True, slots=True)
class Rubric:
    """By what a judge decides."""

    text: str
    """What makes an answer better."""
    principles: tuple[str, ...] = ()
    """A constitution: one of them is drawn for each judgment (Bai et al. 2022, arXiv 2212.08073, 4.1)."""

    @property
    def sha256(self) -> str:
        """Digest of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def constitution_sha256(self) -> str:
        """Digest of the principles, one a line."""
        return hashlib.sha256("\n".join(self.principles).encode()).hexdigest()

    def principle(self, name: str) -> int | None:
        """Return the number of the principle that is drawn for a task, from 0; None if there are none."""
        if not self.principles:
            return None
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % len(self.principles)

    def recorded(self, principle: int | None) -> dict[str, Any]:
        """Return what a judgment records of the rubric, and of the principle that was drawn."""
        found: dict[str, Any] = {"rubric_sha256": self.sha256}
        if principle is not None:
            found["constitution_sha256"] = self.constitution_sha256
            found["principle"] = {"number": principle + 1, "text": self.principles[principle]}
        return found


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers in both orders."""

    first: str
    """Id of an answer."""
    second: str
    """Id of the other."""
    replies: tuple[str, str]
    """What the model said with the first answer as A, and with the second as A."""

    @property
    def verdicts(self) -> tuple[float | None, float | None]:
        """Of each reply: 1 if the first answer is better, 0 if the second is, 0.5 for a tie, None if nothing
        can be read.
        """
        one, swapped = (verdict_of(reply) for reply in self.replies)
        return one, None if swapped is None else 1.0 - swapped

    @property
    def verdict(self) -> float | None:
        """What both orders say; a tie if they differ, None if one of them cannot be read."""
        one, other = self.verdicts
        if one is None or other is None:
            return None
        return one if one == other else 0.5

    def as_json(self) -> dict[str, Any]:
        """Return it as details of a judgment have it."""
        one, other = self.verdicts
        return {
            "first": self.first,
            "second": self.second,
            "replies": [reply[-_REPLY_CHARACTERS:] for reply in self.replies],
            "verdicts": [one, other],
            "consistent": one is not None and one == other,
        }


@dataclass(slots=True)
class Judged:
    """What a model said about a task."""

    ranks: Mapping[str, int] | None
    """Rank of each answer by its id, 1 for the best; None if a reply could not be read."""
    comparisons: Sequence[Comparison]
    """What it was asked, in the order of the replies."""
    principle: int | None
    """The principle that was drawn."""


class _UnreadableError(Exception):
    """A reply that says neither A, nor B, nor TIE."""


@dataclass(slots=True)
class TaskJudge:
    """A language model that ranks the answers to a prompt."""

    speaker: Speaker
    """The model."""
    rubric: Rubric
    """By what it decides."""

    async def judge(self, name: str, prompt: str, answers: Mapping[str, str]) -> Judged:
        """Rank answers.

        Up to `ALL_PAIRS` answers are ranked by their wins over all others, where a tie is half a win. More
        are sorted by merging, with neighbours that tie in one rank.

        Args:
            name: of the task; decides which principle is drawn.
            prompt: what was asked.
            answers: texts by id, at least two.

        Raises:
            FairleadError: the model cannot be asked.
        """
        principle = self.rubric.principle(name)
        asked = _Asked(self, prompt, answers, principle)
        try:
            ids = list(answers)
            ranks = await (asked.all_pairs(ids) if len(ids) <= ALL_PAIRS else asked.sorted_ranks(ids))
        except _UnreadableError:
            ranks = None
        return Judged(ranks, list(asked.found.values()), principle)

    def details(self, judged: Judged) -> dict[str, Any]:
        """Return what a judgment records of it."""
        return {
            **self.rubric.recorded(judged.principle),
            "model": self.speaker.version,
            "comparisons": [one.as_json() for one in judged.comparisons],
        }

    async def ask(self, prompt: str, first: str, second: str, principle: int | None) -> str:
        """Return the reply to one order of two answers."""
        parts = [self.rubric.text.strip()]
        if principle is not None:
            parts.append(f"Decide by this principle above all: {self.rubric.principles[principle]}")
        parts += [f"[Message]\n{prompt}", f"[Answer A]\n{first}", f"[Answer B]\n{second}", _ENDING]
        return await self.speaker.reply("\n\n".join(parts))


@dataclass(slots=True)
class _Asked:
    """The comparisons of one task."""

    judge: TaskJudge
    prompt: str
    answers: Mapping[str, str]
    principle: int | None
    found: dict[tuple[str, str], Comparison] = field(default_factory=dict)

    async def all_pairs(self, ids: Sequence[str]) -> dict[str, int]:
        pairs = list(combinations(ids, 2))
        verdicts = await asyncio.gather(*(self._compare(*pair) for pair in pairs), return_exceptions=True)
        wins = dict.fromkeys(ids, 0.0)
        failed = [one for one in verdicts if isinstance(one, BaseException)]
        if failed:
            # A model that cannot be asked is no reason to skip a task.
            raise min(failed, key=lambda one: isinstance(one, _UnreadableError))
        for (first, second), verdict in zip(pairs, verdicts, strict=True):
            assert isinstance(verdict, float)
            wins[first] += verdict
            wins[second] += 1 - verdict
        places = sorted(set(wins.values()), reverse=True)
        return {name: places.index(won) + 1 for name, won in wins.items()}

    async def sorted_ranks(self, ids: Sequence[str]) -> dict[str, int]:
        order = await self._sorted(list(ids))
        ranks = {order[0]: 1}
        for before, after in pairwise(order):
            # Merging has compared all neighbours.
            ranks[after] = ranks[before] + (await self._compare(before, after) != 0.5)
        return ranks

    async def _sorted(self, ids: list[str]) -> list[str]:
        if len(ids) < 2:
            return ids
        left, right = await self._sorted(ids[: len(ids) // 2]), await self._sorted(ids[len(ids) // 2 :])
        merged = []
        while left and right:
            merged.append((left if await self._compare(left[0], right[0]) >= 0.5 else right).pop(0))
        return merged + left + right

    async def _compare(self, first: str, second: str) -> float:
        if (second, first) in self.found:
            return 1.0 - await self._compare(second, first)
        if (first, second) not in self.found:
            one, other = self.answers[first], self.answers[second]
            replies = await asyncio.gather(
                self.judge.ask(self.prompt, one, other, self.principle),
                self.judge.ask(self.prompt, other, one, self.principle),
            )
            self.found[first, second] = Comparison(first, second, (replies[0], replies[1]))
        verdict = self.found[first, second].verdict
        if verdict is None:
            raise _UnreadableError
        return verdict


def verdict_of(reply: str) -> float | None:
    """Return what the last line of a reply says: 1 for A, 0 for B, 0.5 for TIE, None for anything else."""
    lines = [line.strip(_MARKS) for line in reply.splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    found = _VERDICT.fullmatch(last)
    return None if found is None else {"A": 1.0, "B": 0.0}.get(found[1], 0.5)


def rubric_of(file: Path, constitution: Path | None) -> Rubric:
    """Read a rubric, and the principles of a constitution: a line each; empty lines and headings are none.

    Raises:
        ConfigError: a file cannot be read, or has nothing in it.
    """
    text = _read("RUBRIC", file)
    principles: tuple[str, ...] = ()
    if constitution is not None:
        lines = (line.strip() for line in _read("--constitution", constitution).splitlines())
        principles = tuple(_BULLET.sub("", line, count=1) for line in lines if line and line[0] != "#")
        if not principles:
            raise ConfigError(
                "--constitution", got=f"{constitution} without a line", allowed="a principle each"
            )
    return Rubric(text, principles)


def _read(name: str, file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(name, got=f"{file}: {error}", allowed="a text file") from error
    if not text.strip():
        raise ConfigError(name, got=f"{file}, which is empty", allowed="a text")
    return text
