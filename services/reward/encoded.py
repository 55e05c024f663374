"""What is scored, as ids: prompt and response together, and where the one ends. Knows no tokenizer."""

from __future__ import annotations

from collections.abc import Hashable, Iterable


class Encoded(tuple[int, ...]):
    """Ids of prompt and response; a tuple that knows how many of them are the prompt's."""

    prompt_length: int
    """0 where no border is known, as in some chat templates."""

    def __new__(cls, prompt: Iterable[int], response: Iterable[int]) -> Encoded:
        """Puts both together."""
        before = tuple(prompt)
        encoded = super().__new__(cls, (*before, *response))
        encoded.prompt_length = len(before)
        return encoded


def prompt_length(sequence: tuple[int, ...]) -> int:
    """Ids before the response; 0 where that is not known."""
    return sequence.prompt_length if isinstance(sequence, Encoded) else 0


def beginning(sequence: tuple[int, ...]) -> tuple[Hashable, int]:
    """A key of the prompt, None without one, and its length, for the packing of batches."""
    length = prompt_length(sequence)
    return (sequence[:length] if length else None), length
