"""From an exchange that a gateway hands in to a prompt in the store: draw, mask, compare, keep.

Runs in a thread of the store. Of an exchange that is not drawn nothing is looked at.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fairlead.config.feedback import CollectSection
from fairlead.errors import ConfigError
from fairlead.types import Message
from services.feedback.collection.personal_data import Detector, Span, find, mask
from services.feedback.collection.similarity import Likenesses
from services.feedback.store import Store
from services.feedback.store.collected import Bounds, NewCollected, Outcome
from services.feedback.store.records import NewPrompt

logger = logging.getLogger(__name__)

SOURCE = "gateway"
"""Where collected prompts come from, as the store names it."""
_KIND = re.compile(r"[A-Z][A-Z_]{1,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request to the policy whose user agreed that it is kept."""

    id: str
    """Random, made by the gateway."""
    turns: tuple[Message, ...]
    """The conversation; the last turn is the one that was answered."""
    consent: str
    """By what its user agreed: `asked` or `notice`, with the version of the notice."""
    user: str
    """The end user; empty if the request named none."""
    api_key: str
    """Id of the API key of the request; empty without keys."""
    request_id: str
    """Id of the request."""
    weight_versions: tuple[str, ...]
    """Weights that answered."""
    metadata: Mapping[str, str]
    """Of the request."""


class Intake:
    """Keeps exchanges by the rules of `[feedback.collect]`."""

    def __init__(self, store: Store, section: CollectSection) -> None:
        """
        Args:
            store: where prompts are kept.
            section: the rules.

        Raises:
            ConfigError: the detector cannot be imported.
        """
        self._store = store
        self._section = section
        self._detector = _detector(section.detector) if section.detector else None
        self._likenesses = Likenesses(
            store.collected.mark_secret(), prefix_characters=section.prefix_characters
        )

    def add(self, batch: str, exchanges: Sequence[Exchange]) -> Counter[Outcome]:
        """Keep what the rules allow; return how many exchanges had which outcome.

        Raises:
            InvalidInput: a field is invalid or too long; nothing is kept then.
        """
        section = self._section
        left_out: Counter[tuple[str, Outcome]] = Counter()
        kept: list[NewCollected] = []
        for one in exchanges:
            if not self._store.collected.draws(one.id, section.share):
                left_out[one.api_key, "not_drawn"] += 1
                continue
            try:
                kept.append(self._prepared(one))
            except Exception as error:  # noqa: BLE001 - the detector is code of the operator
                logger.error("cannot mask a collected prompt, it is not kept: %s", type(error).__name__)
                left_out[one.api_key, "failed"] += 1
        bounds = Bounds(section.share, section.per_user, section.per_key, section.similarity)
        return self._store.collected.add(batch, kept, bounds, left_out=left_out)

    def _prepared(self, one: Exchange) -> NewCollected:
        counts: Counter[str] = Counter()

        def masked(text: str) -> str:
            found, new = mask(text, find(text, self._detector))
            counts.update(new)
            return found

        turns = tuple(Message(turn.role, masked(turn.content)) for turn in one.turns)
        metadata = {masked(name): masked(value) for name, value in one.metadata.items()}
        likeness = self._likenesses.of(turns)
        return NewCollected(
            prompt=NewPrompt(turns=turns, source=SOURCE, consent=one.consent, state="new"),
            user=one.user,
            api_key=one.api_key,
            request_id=one.request_id,
            weight_versions=one.weight_versions,
            metadata=metadata,
            masked=counts,
            exact=likeness.exact,
            prefix=likeness.prefix,
            bands=likeness.bands,
            signature=likeness.signature,
        )


def _detector(named: str) -> Detector:
    module, _, name = named.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    # The code of an operator may raise anything.
    except Exception as error:
        raise ConfigError(
            "feedback.collect.detector", got=f"{named} ({error})", allowed="a function that can be imported"
        ) from error
    if not callable(function):
        raise ConfigError("feedback.collect.detector", got=named, allowed="a function")

    def spans(text: str) -> Iterable[Span]:
        for start, end, kind in function(text):
            if not (0 <= start < end <= len(text) and _KIND.fullmatch(kind)):
                raise ValueError(
                    f"({start}, {end}, {kind!r}) is no span of {len(text)} characters with a kind"
                )
            yield Span(start, end, kind)

    return spans
