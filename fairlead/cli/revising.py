"""A language model writes a demonstration: an answer, a critique of it by a principle, and a revision.

The supervised stage of Constitutional AI (Bai et al. 2022, arXiv 2212.08073, 3.1), with one principle a task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fairlead.cli.judging import Rubric, TaskJudge

if TYPE_CHECKING:
    from fairlead.cli.judges import Speaker

_TEXT = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FAULTLESS = "NOTHING"
_MARKS = " \t*_`'\".!"
_TAGS = "Write only the answer, between <answer> and </answer>."
_CRITIQUE = """Write a critique of the answer: by the rubric, and above all by the principle, say what is \
wrong with it and in which passage. Do not write another answer. If nothing is wrong, write only NOTHING."""
_REVISION = """Write the answer again, so that it follows the principle and the critique no longer applies. \
Keep what is good."""


@dataclass(frozen=True, slots=True)
class Revised:
    """What a model wrote for a task."""

    base: str | None
    """Id of the answer that was revised; None for an answer of its own."""
    answer: str
    """The answer that was criticised; empty if none could be read."""
    critique: str
    """The critique; empty without an answer."""
    revision: str | None
    """The demonstration; None if a reply could not be read, or nothing was wrong with an answer of others."""
    principle: int | None
    """The principle that was drawn."""
    reply: str
    """The last reply."""


@dataclass(frozen=True, slots=True)
class TaskReviser:
    """A language model that writes demonstrations."""

    speaker: Speaker
    """The model."""
    rubric: Rubric
    """By what it criticises."""

    async def revise(self, name: str, prompt: str, answers: Mapping[str, str]) -> Revised:
        """Write a demonstration.

        Of several answers the best by the rubric is revised; without one the model answers first.

        Args:
            name: of the task; decides which principle is drawn.
            prompt: what was asked.
            answers: texts by id; may be empty.

        Raises:
            FairleadError: the model cannot be asked.
        """
        principle = self.rubric.principle(name)
        base = await self._best(name, prompt, answers)
        message = f"[Message]\n{prompt}"
        if base is None and answers:
            return Revised(None, "", "", None, principle, "no verdict about the answers")
        if base is None:
            reply = await self._ask(principle, message, "Answer the message well by the rubric.", _TAGS)
            answer = text_of(reply) or ""
            if not answer:
                return Revised(None, "", "", None, principle, reply)
        else:
            answer = answers[base]
        message += f"\n\n[Answer]\n{answer}"
        critique = (await self._ask(principle, message, _CRITIQUE)).strip()
        if critique.strip(_MARKS).upper() == _FAULTLESS:
            return Revised(base, answer, critique, None if base else answer, principle, critique)
        message += f"\n\n[Critique]\n{critique}"
        reply = await self._ask(principle, message, _REVISION, _TAGS)
        revision = text_of(reply)
        return Revised(base, answer, critique, None if revision == answer else revision, principle, reply)

    def details(self, revised: Revised) -> dict[str, Any]:
        """Return what a demonstration records of it."""
        return {
            **self.rubric.recorded(revised.principle),
            "model": self.speaker.version,
            "answer": revised.answer,
            "critique": revised.critique,
        }

    async def _best(self, name: str, prompt: str, answers: Mapping[str, str]) -> str | None:
        """Return the best of some answers; None if there are none, or a verdict could not be read."""
        if len(answers) < 2:
            return next(iter(answers), None)
        ranks = (await TaskJudge(self.speaker, self.rubric).judge(name, prompt, answers)).ranks
        return None if ranks is None else min(answers, key=ranks.__getitem__)

    async def _ask(self, principle: int | None, *parts: str) -> str:
        own = [] if principle is None else [f"Principle: {self.rubric.principles[principle]}"]
        return await self.speaker.reply("\n\n".join([self.rubric.text.strip(), *own, *parts]))


def text_of(reply: str) -> str | None:
    """Return the answer in a reply; None if there is none, or several."""
    found = [text.strip() for text in _TEXT.findall(reply)]
    return found[0] if len(found) == 1 and found[0] else None
