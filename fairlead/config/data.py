"""The sections of what training starts from: the base model and the data."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from fairlead.config.base import Section


class ScratchModel(Section):
    """A small Llama model with random weights, and a tokenizer trained on the texts of the run."""

    hidden_size: int = Field(default=64, ge=8, le=8_192)
    """Width of the model."""
    num_layers: int = Field(default=2, ge=1, le=128)
    """Number of transformer blocks."""
    num_heads: int = Field(default=4, ge=1, le=128)
    """Number of attention heads; must divide `hidden_size`."""
    max_position_embeddings: int = Field(default=256, ge=8, le=131_072)
    """Maximum length of a sequence, in tokens."""
    tokenizer: Literal["words", "bpe"] = "bpe"
    """`words` splits at white space; `bpe` is byte-level byte-pair encoding."""
    vocabulary_size: int = Field(default=4_096, ge=16, le=262_144)
    """Maximum number of entries of the tokenizer."""


TemplateArgument = bool | int | float | str
"""A value that a chat template can read."""
_RENDERED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
"""Variables of a chat template that every rendering sets itself."""


class ModelSection(Section):
    """The base model: an existing model, or one from scratch."""

    path: str = ""
    """Local folder, GGUF file or Hugging Face id of a causal language model. Empty: a model from scratch."""
    chat_template: str = ""
    """File with a chat template in Jinja, relative to the folder of the run's file, for the models that a run
    starts from: `model.path`, `reward_model.path`, `preference.path` and `policy.path`. Trained models are
    saved with it. Empty: the template of the model's tokenizer."""
    template_arguments: dict[str, TemplateArgument] = Field(default={})
    """Values of variables of that chat template, such as `{ enable_thinking = false }`. They become a part of
    the template, so that every stage, service and exported model renders the same."""
    scratch: ScratchModel = ScratchModel()
    """Sizes of a model from scratch; used if `path` is empty."""

    @field_validator("template_arguments", mode="before")
    @classmethod
    def _check_template_arguments(cls, arguments: object) -> object:
        for name, value in arguments.items() if isinstance(arguments, dict) else ():
            if not str(name).isidentifier() or name in _RENDERED:
                raise ValueError(
                    f"the name of a variable of the chat template in place of {name!r}, and not "
                    f"{', '.join(_RENDERED)}, which every rendering sets"
                )
            if not isinstance(value, bool | int | float | str) or (
                isinstance(value, float) and not math.isfinite(value)
            ):
                raise ValueError(f"text, a finite number, true or false as {name}")
        return arguments


class DataSection(Section):
    """Files of JSON lines (plain or gzipped) or Parquet, folders, or datasets on the Hugging Face Hub.
    [docs/data.md](data.md) describes every format. Paths are absolute, or relative to the folder of the run's
    file.
    """

    demonstrations: str | tuple[str, ...] = ""
    """For SFT: one source or several, with `{"prompt", "completion"}`, `{"messages": [{"role", "content"}]}`
    or plain `{"text"}` per line. Formats may be mixed; prompt and completion may also be messages."""
    heldout_demonstrations: str | tuple[str, ...] = ""
    """Demonstrations that are only evaluated on. All `demonstrations` are then trained on, and
    `heldout_fraction` does not apply to them."""
    preferences: str | tuple[str, ...] = ""
    """For the reward model and the preference stage: one source or several. A line is `{"prompt",
    "responses": [{"text", "rank"}]}` (rank 1 is best, equal ranks are ties), the same with `score` (higher is
    better), or `{"prompt", "chosen", "rejected"}`; texts may also be messages. Without `prompt`, the common
    beginning of `chosen` and `rejected` is the prompt."""
    heldout_preferences: str | tuple[str, ...] = ""
    """Comparisons that are only evaluated on, in place of a fraction of `preferences`."""
    thumbs: str | tuple[str, ...] = ""
    """For the preference stage with `loss = "kto"`: one source or several, with `{"prompt", "completion",
    "label"}` per line; `label` is true for a good answer and false for a bad one."""
    heldout_thumbs: str | tuple[str, ...] = ""
    """Answers with a thumb that are only evaluated on, in place of a fraction of `thumbs`."""
    tie_margin: float = Field(default=0.0, ge=0)
    """Responses whose scores differ by less than this are ties. Does not apply to ranks."""
    prompts: str | tuple[str, ...] = ""
    """For PPO: one source or several, with `{"prompt"}`, as text or as messages, or `{"messages"}` per
    line."""
    heldout_prompts: str | tuple[str, ...] = ""
    """Prompts that PPO is only evaluated on, in place of a fraction of `prompts`."""
    fresh_rankings: str = ""
    """For PPO's guard: a file of rankings of answers in the run's samples_ppo.jsonl, in a format of
    `preferences`. Labelers append to it while the run is in progress; it need not exist at the start."""
    sentences: str = ""
    """Source with `{"text", "label"}` per line. Demonstrations, preferences and prompts that are not set are
    derived from it: the first words are the prompt, and label 1 is preferred."""
    bad_lines: Literal["refuse", "skip"] = "refuse"
    """What to do with a line that cannot be read: `refuse` stops at the first one; `skip` skips such lines
    and logs their number. A damaged file is always refused."""
    prompt_words: int = Field(default=3, ge=1, le=100)
    """Number of words of a sentence that form the prompt, with `sentences`."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Fraction of the prompts that is held out of training; the split is by prompt. It does not apply to a
    stage whose held-out data has a source of its own."""
