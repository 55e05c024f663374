"""Which prompts say nearly the same: a digest of the normalised text, its start, and MinHash (Broder 1997).

Everything is keyed with a secret of the store, so that a copy of the marks confirms no guess of a text.
"""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.types import Message

SHINGLE_CHARACTERS = 5
"""Characters of a shingle: words of any language, without knowing where they end."""
HASHES = 128
"""Values of a signature; the estimate of the similarity has a standard error of at most 0.045."""
_BANDS = 16
"""Two texts meet if all values of one of these parts are equal: 95% of those of a similarity of 0.8."""
_READ_CHARACTERS = 20_000
"""Start of a text that is compared."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """By what a prompt finds those that are like it."""

    exact: str
    """Equal for prompts that differ in case, width and spaces only."""
    prefix: str
    """Equal for prompts that begin the same; empty for a text that is not longer than that."""
    bands: tuple[str, ...]
    """Similar prompts share at least one."""
    signature: tuple[int, ...]
    """The share of equal values of two signatures estimates the Jaccard similarity of their shingles."""


class Likenesses:
    """Computes likenesses with one secret."""

    def __init__(self, secret: bytes, *, prefix_characters: int) -> None:
        """
        Args:
            secret: key of digests and of hash functions.
            prefix_characters: length of the start that near-duplicates share; 0 compares no starts.
        """
        self._secret = secret
        self._prefix_characters = prefix_characters
        seed = int.from_bytes(hmac.digest(secret, b"minhash", "sha256")[:8], "big")
        rng = np.random.default_rng(seed)
        self._factors = rng.integers(0, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets = rng.integers(0, 2**63, HASHES, dtype=np.uint64)
        self._powers = rng.integers(0, 2**63, SHINGLE_CHARACTERS, dtype=np.uint64)

    def of(self, turns: Sequence[Message]) -> Likeness:
        """Return the likeness of a prompt. The turns of the system are compared only for exact equality, as
        an application sends the same ones each time.
        """
        whole = "\n".join(f"{turn.role}: {normalised(turn.content)}" for turn in turns)
        text = "\n".join(normalised(turn.content) for turn in turns if turn.role != "system")
        cut = self._prefix_characters
        prefix = self._mark("prefix", text[:cut]) if 0 < cut < len(text) else ""
        signature = self.signature(text)
        rows = HASHES // _BANDS
        bands = tuple(
            self._mark(f"band {band}", ",".join(map(str, signature[band * rows : (band + 1) * rows])))
            for band in range(_BANDS)
        )
        return Likeness(self._mark("exact", whole), prefix, bands, signature)

    def signature(self, text: str) -> tuple[int, ...]:
        """Return the smallest value that each hash function has for a shingle of a text."""
        codes = np.frombuffer(
            text[:_READ_CHARACTERS].ljust(SHINGLE_CHARACTERS).encode("utf-32-le", "surrogatepass"), np.uint32
        ).astype(np.uint64)
        count = len(codes) - SHINGLE_CHARACTERS + 1
        shingles: NDArray[np.uint64] = np.zeros(count, np.uint64)
        for place, power in enumerate(self._powers):
            shingles += codes[place : place + count] * power
        shingles = np.unique(shingles)
        shingles ^= shingles >> np.uint64(31)
        # The upper half of a product is a good hash of an odd factor (Dietzfelbinger et al. 1997).
        return tuple(
            int(((shingles * factor + offset) >> np.uint64(32)).min())
            for factor, offset in zip(self._factors, self._offsets, strict=True)
        )

    def _mark(self, what: str, text: str) -> str:
        message = f"{what}\n{text}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._secret, message, "sha256").hex()[:32]


def normalised(text: str) -> str:
    """Return a text without differences of case, width (NFKC) and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
