"""A caller that requests scores from the gateway during faults: each reply is right, or an error to retry.

The right scores are computed here, in float64, one text at a time. Uses HTTP like any external caller; knows
neither faults nor the run.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from tests.tiny import VOCABULARY

logger = logging.getLogger(__name__)

KINDS = RIGHT, REFUSED, SILENT, WRONG = "right", "refused", "silent", "wrong"
"""Kinds of replies: the right scores; an error that may be retried; no reply at all; anything else."""

_CONCURRENCY = 2
_PAUSE_SECONDS = 0.3
_TIMEOUT_SECONDS = 8.0
_TOLERANCE = 1e-4
_RETRY_LATER = (429, 503)
_DEADLINE_EXCEEDED = 504

Text = tuple[str, str]
"""Prompt and response."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one request."""

    asked: float
    """Unix time of the request."""
    ended: float
    """Unix time of the reply."""
    kind: str
    """RIGHT, REFUSED, SILENT or WRONG."""
    detail: str = ""
    """Status and body of a WRONG reply."""


def oracle(reward_model: Path, *, count: int = 24, seed: int = 0) -> dict[Text, float]:
    """Return texts and the scores that the reward model gives them; no two scores are close."""
    draw = random.Random(seed)
    model = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=torch.float64)
    found: dict[Text, float] = {}
    while len(found) < count:
        words = [f"w{draw.randrange(56)}" for _ in range(draw.randint(3, 24))]
        ids = [1, *map(VOCABULARY.index, words), 2]
        with torch.inference_mode():
            hidden = model.model(input_ids=torch.tensor([ids]))[0][0, -1]
            score = float(hidden @ model.score.weight[0]) + model.config.fairlead_reward_bias
        if all(abs(score - other) > 100 * _TOLERANCE for other in found.values()):
            found[" ".join(words[:2]), " ".join(words[2:])] = score
    return found


class Caller:
    """Requests scores from one gateway."""

    def __init__(self, address: str, scores: Mapping[Text, float], *, seed: int) -> None:
        """
        Args:
            address: `host:port`.
            scores: texts, and the right score of each.
            seed: of the choice of texts.
        """
        self._address = address
        self._scores = scores
        self._draw = random.Random(seed)
        self.replies: list[Reply] = []

    async def run(self) -> None:
        """Send requests until cancelled."""

        async def ask() -> None:
            for number in itertools.count():
                chosen = self._draw.sample(list(self._scores), self._draw.randint(1, 5))
                reply = await asyncio.to_thread(self._ask, chosen, openrlhf=number % 4 == 3)
                if reply.kind == WRONG:
                    logger.error("wrong reply of the gateway: %s", reply.detail)
                self.replies.append(reply)
                await asyncio.sleep(_PAUSE_SECONDS)

        await asyncio.gather(*(ask() for _ in range(_CONCURRENCY)))

    def count(self) -> dict[str, int]:
        """Return the number of replies of each kind."""
        kinds = Counter(reply.kind for reply in self.replies)
        return {kind: kinds[kind] for kind in KINDS}

    def longest_without(self, *, until: float) -> float:
        """Return the longest time between right replies, in seconds; `until` is the Unix time of the end."""
        times = [reply.ended for reply in self.replies if reply.kind == RIGHT]
        begun = [reply.asked for reply in self.replies[:1]]
        return max((b - a for a, b in itertools.pairwise([*begun, *times, until])), default=0.0)

    def recovery_seconds(self, since: float) -> float | None:
        """Return the time until the first right reply to a request after `since`; None if there is none."""
        later = [r.ended for r in self.replies if r.asked > since and r.kind == RIGHT]
        return min(later) - since if later else None

    def _ask(self, chosen: Sequence[Text], *, openrlhf: bool) -> Reply:
        """Send one request, in Fairlead's dialect or in OpenRLHF's."""
        asked = time.time()
        if openrlhf:
            path, body = "/get_reward", {"query": [f"{prompt} {response}" for prompt, response in chosen]}
        else:
            items = [{"prompt": prompt, "response": response} for prompt, response in chosen]
            path, body = "/v1/rewards", {"items": items}
        try:
            status, headers, answer = self._post(path, json.dumps(body).encode())
        except (OSError, http.client.HTTPException):
            return Reply(asked, time.time(), SILENT)
        return Reply(asked, time.time(), *self._judge(chosen, status, headers, answer))

    def _post(self, path: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)
        headers = {"content-type": "application/json", "x-request-timeout": f"{_TIMEOUT_SECONDS - 2:g}"}
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return response.status, named, response.read()
        finally:
            connection.close()

    def _judge(
        self, chosen: Sequence[Text], status: int, headers: Mapping[str, str], body: bytes
    ) -> tuple[str, str]:
        if status == _DEADLINE_EXCEEDED or (status in _RETRY_LATER and "retry-after" in headers):
            return REFUSED, ""
        shown = f"{status}: {body[:500]!r}"
        if status != 200:
            return WRONG, shown
        answer = json.loads(body)
        # Fairlead returns an object per text, OpenRLHF a number.
        found = [one["reward"] if isinstance(one, dict) else one for one in answer["rewards"]]
        expected = [self._scores[text] for text in chosen]
        close = len(found) == len(expected) and all(
            abs(one - other) <= _TOLERANCE * max(1.0, abs(other))
            for one, other in zip(found, expected, strict=True)
        )
        return (RIGHT, "") if close else (WRONG, f"{shown}, expected scores: {expected}")
