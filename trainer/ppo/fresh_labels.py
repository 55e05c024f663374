"""Rankings of the policy's own answers that come in while PPO runs: is the reward model as good as it claims?

People append them to `data.fresh_rankings`, of answers that stand in samples_ppo.jsonl. By the model of
Bradley and Terry two scores claim how likely the better one is preferred. A policy that games its reward
drives scores apart while people's minds do not follow: the claim outgrows the truth, whatever the answers
look like.
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

_MOST_ANSWERS = 100_000
"""Scores that are remembered; labels of older answers are passed over."""

_PromptAndText = tuple[str, str]
"""Prompt and text."""


class FreshLabels:
    """The labels of one run, read as they are appended; a bad line is told and passed over."""

    def __init__(self, path: Path, *, num_pairs: int, tie_margin: float = 0.0) -> None:
        """
        Args:
            path: the file of rankings, in the form of `data.preferences`; it need not exist yet.
            num_pairs: pairs that are judged together, the newest.
            tie_margin: scores of labelers closer than this are ties.
        """
        self._path, self._tie_margin = path, tie_margin
        self._scores = OrderedDict[_PromptAndText, float]()
        self._claims = deque[float](maxlen=num_pairs)
        self._tail = Tail(path)

    def remember(self, answers: Iterable[tuple[str, str, float]]) -> None:
        """(prompt, text, score) of answers that labelers may rank from now on."""
        for prompt, text, score in answers:
            self._scores[prompt, text] = score
            self._scores.move_to_end((prompt, text))
        while len(self._scores) > _MOST_ANSWERS:
            self._scores.popitem(last=False)

    def overconfidence(self) -> float | None:
        """Mean of σ(|Δ score|) over the newest pairs, less the share that the scores order as people did.

        At most 1; below 0 for a reward model that knows more than it claims. None until there are as many
        pairs as are judged together.
        """
        for line in self._appended():
            try:
                found = comparisons(line, tie_margin=self._tie_margin)
            except DataError as error:
                logger.warning("a fresh ranking is passed over: %s", error)
                continue
            self._claims.extend(self._judge(found))
        return fmean(self._claims) if len(self._claims) == self._claims.maxlen else None

    def _judge(self, found: Comparisons) -> Iterator[float]:
        """Claim less truth of every pair whose answers are known."""
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
        """The objects that were appended since the last look; what is none is told."""
        try:
            for number, content in self._tail.appended():
                if not content.strip():
                    continue
                line = parse(str(self._path), number, content)
                if isinstance(line, Line):
                    yield line
                else:
                    logger.warning("a fresh ranking is passed over: %s", line)
        except OSError as error:
            logger.warning("fresh rankings cannot be read: %s: %s", self._path, error.strerror)
