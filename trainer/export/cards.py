"""The model cards of the two exported parts: the contents specific to a policy and to a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fairlead.config import RunConfig, RunFolder
from fairlead.data.chat import Chat
from fairlead.data.records import load_preferences, load_prompts
from fairlead.errors import FairleadError
from fairlead.nn import adapters
from fairlead.nn.ensemble import FILE as ENSEMBLE
from fairlead.report.run_record import RunRecord
from trainer.export import card, code
from trainer.export.card import Card
from trainer.export.policy import ExportedPolicy
from trainer.export.reward import ExportedRewardModel


def policy_card(config: RunConfig, folder: RunFolder, record: RunRecord, found: ExportedPolicy) -> Card:
    """Return the card of the policy."""
    base, base_id = card.base_of(config)
    made = "fine-tuned on demonstrations"
    if found.which == "preference":
        made = f"trained on preferences with the loss {config.preference.loss}"
    elif found.which != "sft":
        updates = f", after {found.version.update} updates" if found.version else ""
        made = f"aligned by PPO against {_judge(config)}{updates}"
    sampling = config.sampling
    return Card(
        kind="policy",
        library="peft" if adapters.is_adapted(found.model) else "transformers",
        title=f"{record.name}: policy",
        lead=f"A language model, {made}. The base model is {base}; these are {found.described}.",
        base_id=base_id,
        code=code.policy(chat=_chats(config, "prompts")),
        code_note="This is an adapter: to load it, you need the package `peft` and the base model named in "
        f"`{adapters.CONFIG_FILE}`."
        if adapters.is_adapted(found.model)
        else "By default `generate` samples as the run did: `temperature` "
        f"{sampling.temperature:g}, `top_p` {sampling.top_p:g}, `top_k` {sampling.top_k or 'off'}, "
        f"at most {sampling.max_new_tokens} tokens.",
        data=card.data_rows(
            config, folder, ("demonstrations", "preferences", "thumbs", "prompts", "sentences")
        ),
        counts=card.counts(record, "policy"),
        metrics=card.metrics(record, "policy"),
        settings=card.settings(config, record, "policy"),
        lineage=(f"Weights: {found.described}", *card.origin(folder, record, "policy")),
    )


def reward_card(
    config: RunConfig,
    folder: RunFolder,
    record: RunRecord,
    found: ExportedRewardModel,
    digests: Sequence[str],
) -> Card:
    """Return the card of the reward model or ensemble; `digests` are those of its members' weights."""
    base, base_id = card.base_of(config)
    count = len(found.members)
    many = count > 1
    what = f"{count} reward models, an ensemble" if many else "A reward model"
    return Card(
        kind="reward model",
        library="transformers",
        title=f"{record.name}: reward model",
        lead=f"{what}: one scalar for a response to a prompt, higher is better. The base model is {base}. It "
        "was trained on comparisons; demonstrations, if the run had any, score 0 on average.",
        base_id=base_id,
        code=code.reward(chat=_chats(config, "preferences"), member="member-0" if many else ""),
        code_note=" ".join(_notes(config, found)),
        data=card.data_rows(config, folder, ("demonstrations", "preferences", "sentences")),
        counts=card.counts(record, "reward model"),
        metrics=card.metrics(record, "reward model"),
        settings=card.settings(config, record, "reward model"),
        lineage=(f"Weights: {', '.join(digests)}", *card.origin(folder, record, "reward model")),
    )


def _notes(config: RunConfig, found: ExportedRewardModel) -> list[str]:
    notes = [
        "The constant `fairlead_reward_bias` sets the zero of the scores. `transformers` ignores it, and it "
        "is not needed to compare responses."
    ]
    pad = found.tokenizer.pad_token
    notes.append(
        f"Batches are padded with `{pad}`, and the score is read before the padding."
        if pad
        else "The tokenizer has no spare token for padding: pass one sequence at a time to `transformers`."
    )
    if len(found.members) > 1:
        rule = config.reward.ensemble.replace("_", " ")
        notes.append(
            f"The code loads one member; the run used the {rule} of all members as the score. With "
            f"`{ENSEMBLE}`, Fairlead serves them as one model."
        )
    return notes


def _judge(config: RunConfig) -> str:
    path = config.reward.path
    if config.reward.engine == "function":
        return f"the function `{config.reward.function}`"
    if config.reward.engine == "combined":
        return f"a combination of {', '.join(config.reward.combined.terms)}"
    if not path:
        return "the reward model of the run"
    return f"the reward model `{Path(path).name if Path(path).is_dir() else path}`"


def _chats(config: RunConfig, kind: Literal["prompts", "preferences"]) -> bool:
    """Return whether prompts of a kind are conversations; False if they can no longer be read."""
    try:
        if kind == "prompts":
            return isinstance(load_prompts(config).train[0], Chat)
        return isinstance(load_preferences(config).train[0].prompt, Chat)
    except FairleadError:
        return False
