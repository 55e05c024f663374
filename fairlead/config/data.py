"""`[data]`: the files that the stages read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.section import Section


class DataSection(Section):
    """Files of JSON lines (plain or gzipped) or Parquet, folders, datasets of the hub: docs/data.md has every
    form. Paths are absolute, or relative to the folder of the run's file.
    """

    demonstrations: str | tuple[str, ...] = ""
    """For SFT, one source or several: `{"prompt", "completion"}`, `{"messages": [{"role", "content"}]}` or
    plain `{"text"}` a line, mixed as you like; prompt and completion may be messages, too."""
    preferences: str | tuple[str, ...] = ""
    """For the reward model, one source or several: `{"prompt", "responses": [{"text", "rank"}]}` (1 is best,
    equal ranks are ties), the same with `score` (higher is better), or `{"prompt", "chosen", "rejected"}` a
    line, as text or as messages; without `prompt` it is what `chosen` and `rejected` begin with alike."""
    tie_margin: float = Field(default=0.0, ge=0)
    """Responses whose scores are closer than this are ties; ranks are taken as they are."""
    prompts: str | tuple[str, ...] = ""
    """For PPO, one source or several: `{"prompt"}`, as text or as messages, or `{"messages"}` a line."""
    fresh_rankings: str = ""
    """For PPO's guard: rankings of answers in the run's samples_ppo.jsonl, in a form of `preferences`, that
    labelers append while it runs; it need not exist yet."""
    sentences: str = ""
    """`{"text", "label"}` a line; demonstrations, preferences and prompts are derived from it where they are
    empty: the first words are the prompt, label 1 is preferred."""
    bad_lines: Literal["refuse", "skip"] = "refuse"
    """What becomes of a line that cannot be read: `refuse` stops at the first, `skip` leaves it out and says
    how many were; a damaged file is always refused."""
    prompt_words: int = Field(default=3, ge=1, le=100)
    """Words of a sentence that make the prompt, with `sentences`."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts kept out of training, split by prompt."""
