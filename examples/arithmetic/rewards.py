"""The reward of this example: whether an answer is the sum that its prompt asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence


def correct(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return 1 for each right answer and 0 for each other one."""
    return [
        float(response.strip() == str(_sum(prompt)))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def _sum(prompt: str) -> int:
    found = re.fullmatch(r"(\d+) \+ (\d+) =", prompt.strip())
    if found is None:
        raise ValueError(f"a prompt such as '3 + 4 =' in place of {prompt!r}")
    return int(found[1]) + int(found[2])
