"""Compare the reward model with rankings of the policy's own answers that arrive while PPO runs.

People rank answers from samples_ppo.jsonl and append the rankings to `data.fresh_rankings`. In the
Bradley-Terry model two scores claim how likely the better answer is to be preferred. A policy that exploits
its reward model drives scores apart while human preferences do not follow: the claimed probability then
exceeds the observed one, no matter how the answers look.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean

from fairlead.data.comparisons import Comparisons, RankedResponses, comparisons
from fairlead.data.lines import Line, parse
from fairlead.data.tail import Tail
from fairlead.errors import DataError

logger = logging.getLogger(__name__)

_MAX_ANSWERS = 100_000
"""Scores that are remembered; labels of older answers are ignored."""

_PromptAndText = tuple[str, str]
"""Prompt and text of an answer."""


class FreshLabels:
    """The labels of one run, read as they are appended; an invalid line is logged and skipped."""

    def __init__(self, path: Path, *, num_pairs: int, tie_margin: float = 0.0) -> None:
        """
        Args:
            path: the file of rankings, in the format of `data.preferences`; it need not exist yet.
            num_pairs: how many of the newest pairs are judged together.
            tie_margin: labeler scores closer than this are ties.
        """
        self._path = path
        self._tie_margin = tie_margin
        self._scores = OrderedDict[_PromptAndText, float]()
        self._claims = deque[float](maxlen=num_pairs)
        self._tail = Tail(path)

    def remember(self, answers: Iterable[tuple[str, str, float]]) -> None:
        """Remember (prompt, text, score) of answers that labelers may rank from now on."""
        for prompt, text, score in answers:
            self._scores[prompt, text] = score
            self._scores.move_to_end((prompt, text))
        while len(self._scores) > _MAX_ANSWERS:
            self._scores.popitem(last=False)

    def overconfidence(self) -> float | None:
        """Return the mean of σ(|Δ score|) over the newest pairs, minus the share ordered as people did.

        At most 1; negative for a reward model that is more accurate than it claims. None until there are
        `num_pairs` pairs.
        """
        for line in self._appended():
            try:
                found = comparisons(line, tie_margin=self._tie_margin)
            except DataError as error:
                logger.warning("a fresh ranking is skipped: %s", error)
                continue
            self._claims.extend(self._judge(found))
        return fmean(self._claims) if len(self._claims) == self._claims.maxlen else None

    def _judge(self, found: Comparisons) -> Iterator[float]:
        """Yield claimed minus observed preference for every pair whose answers are known."""
        if isinstance(found, RankedResponses):
            pairs = [(found.texts[better], found.texts[worse]) for better, worse in found.pairs]
        else:
            pairs = [(found.chosen, found.rejected)]
        for better, worse in pairs:
            asked = str(found.prompt)
            high, low = self._scores.get((asked, better)), self._scores.get((asked, worse))
            if high is not None and low is not None:
                yield 1 / (1 + math.exp(-abs(high - low))) - (high > low)

    def _appended(self) -> Iterator[Line]:
        """Yield the objects appended since the last call; invalid lines are logged."""
        try:
            for number, content in self._tail.appended():
                if not content.strip():
                    continue
                line = parse(str(self._path), number, content)
                if isinstance(line, Line):
                    yield line
                else:
                    logger.warning("a fresh ranking is skipped: %s", line)
        except OSError as error:
            logger.warning("fresh rankings cannot be read from %s: %s", self._path, error.strerror)
