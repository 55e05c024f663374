"""What the reward model learns from: ranked responses to a prompt, or pairs of them; one JSON object a line.

`records` reads the files; `trainer.reward_model.data` makes elements of a batch of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.data.lines import Line


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, and which of them is better."""

    prompt: str
    """May be empty."""
    chosen: str
    """The better answer. May be empty: a policy may say nothing, and silence may be better."""
    rejected: str
    """The worse answer, another text than the better one."""


@dataclass(frozen=True, slots=True)
class RankedResponses:
    """K answers to one prompt, ranked against one another; equals are ties."""

    prompt: str
    """May be empty."""
    texts: tuple[str, ...]
    """At least two."""
    worths: tuple[float, ...]
    """Of each text: higher is better. A rank r is a worth of −r."""
    tie_margin: float = 0.0
    """Worths closer than this are ties; equal ones always are."""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(better, worse) indices of all pairs that are no ties."""
        indices = range(len(self.worths))
        return tuple((i, j) for i in indices for j in indices if self._beats(self.worths[i], self.worths[j]))

    def _beats(self, one: float, other: float) -> bool:
        return one > other and one - other >= self.tie_margin


Comparisons = Preference | RankedResponses
"""What one line may hold."""


def comparisons(line: Line, *, tie_margin: float) -> Comparisons:
    """The record of a line: `responses` with ranks (1 is best) or scores (higher is better), or a pair.

    Args:
        line: the object.
        tie_margin: scores closer than this are ties; ranks are taken as they are.

    Raises:
        DataError: a key is missing or holds something else.
    """
    if "responses" not in line.values:
        return _preference(line)
    responses = line.objects("responses")
    if len(responses) < 2:
        raise line.error(got=f"{len(responses)} responses", allowed="at least 2 to compare")
    keys = [{"rank", "score"} & response.values.keys() for response in responses]
    if any(len(found) != 1 for found in keys) or len(set.union(*keys)) != 1:
        raise line.error(got="responses without one measure", allowed="`rank` in each, or `score` in each")
    key = keys[0].pop()
    values = [response.number_at(key) for response in responses]
    return RankedResponses(
        prompt=line.text("prompt"),
        texts=tuple(response.text("text") for response in responses),
        worths=tuple(-value if key == "rank" else value for value in values),
        tie_margin=tie_margin if key == "score" else 0.0,
    )


def _preference(line: Line) -> Preference:
    found = Preference(prompt=line.text("prompt"), chosen=line.text("chosen"), rejected=line.text("rejected"))
    if found.chosen == found.rejected:
        raise line.error(got="`chosen` and `rejected` alike", allowed="two different answers")
    return found
