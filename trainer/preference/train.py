"""The preference stage: DPO, IPO, SimPO or KTO, from the SFT model to a policy.

Reads rankings or thumbs, computes the reference's log-probs once, writes a model folder. Knows nothing about
services, reward models or the queue.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead import inputs
from fairlead.config import RunConfig
from fairlead.data.template import apply_settings
from fairlead.judgments.shares import wilson_interval
from fairlead.metrics import ProgressMetrics
from fairlead.nn import adapters
from fairlead.nn.loading import (
    check_vocabulary,
    load_causal_lm,
    load_tokenizer,
    max_sequence_tokens,
    set_threads,
)
from fairlead.nn.unembedding import check_unembedding
from trainer import compiling, durable, finite, optim, seeds
from trainer.calibration import interval_by_prompt
from trainer.distributed import loading
from trainer.distributed.group import Group
from trainer.model_training import ModelTraining, Parts, loaded_section
from trainer.preference import data
from trainer.preference.objective import Compared, Heldout, Policy, compared, evaluate
from trainer.preference.reference import ReferenceCache, model_digest
from trainer.results import config_hash
from trainer.stage_checkpoint import StageCheckpoints, agree_to_stop, stops_agreed
from trainer.tracking import Tracker

logger = logging.getLogger(__name__)

Result = dict[str, float | str | list[float]]
"""The content of result_preference.json."""


def train(config: RunConfig, metrics: ProgressMetrics | None = None, *, group: Group | None = None) -> Result:
    """Train, write the model folder and the result, and return the result.

    Args:
        config: the run.
        metrics: of this process.
        group: the ranks that train together, all of which call this; None: only this process. The first
            rank writes the files.

    Raises:
        ConfigError: if there is nothing to learn, or most of it does not fit within the limit of tokens.
        DataError: for invalid data, or conversations without a chat template.
        ModelLoadError: if the initial model cannot be loaded.
        NotFinite: if losses, gradients or weights are not finite.
    """
    begun = time.monotonic()
    section = config.preference
    group = group or Group.single()
    set_threads(section)
    model, tokenizer = _initial_model(config, group)
    limit = max_sequence_tokens(model, section.max_sequence_tokens)
    examples = data.load(config, tokenizer, max_tokens=limit)
    checkpoints = StageCheckpoints(
        "preference",
        config,
        sequences=(
            ids
            for example in examples.train
            for ids in (*(one.token_ids for one in example.sequences), *example.pairs, (int(example.good),))
        ),
        group=group,
    )
    training = ModelTraining("preference", config, model, checkpoints, group)
    if group.size > 1:
        training.root.check(check_unembedding)
    policy = Policy(root=training.root, section=section, dtype=training.dtype)
    with training.tracker(len(examples.train), metrics) as tracker:
        tracker.phase("prepare")
        known, heldout = _with_reference(config, policy, examples, tracker)
        training.restore()
        train_loss, found = _train(training, policy, known, heldout, tracker)
        training.publish(config.folder.preference_model, tokenizer, tracker, what="the policy")
        result: Result = {
            **_figures(found, seed=config.seed),
            **examples.counts,
            "train_loss": train_loss,
            "loss": section.loss,
            "epochs": section.epochs,
            "trained_parameters": sum(parameter.numel() for parameter in optim.learning(model)),
            "seconds": time.monotonic() - begun,
            "config_hash": config_hash("preference", config),
        }
        if group.is_first:
            durable.write_json(config.folder.result("preference"), result)
        checkpoints.forget()
        tracker.phase("done")
    pairs = sum(map(len, found.margins.values()))
    if pairs:
        logger.info("preference: held-out accuracy %.4f of %d", found.figures["accuracy"], pairs)
    else:
        logger.warning("preference: nothing is held out, so that nothing measures what was learnt")
    return result


def _initial_model(config: RunConfig, group: Group) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer to start from."""
    section = config.preference
    path = section.path or str(config.folder.sft_model)
    tokenizer = load_tokenizer(path)
    if section.path:
        apply_settings(tokenizer, config)
    model = load_causal_lm(path, loaded_section(section, group), load=loading.loader(group))
    check_vocabulary(path, model, tokenizer)
    if group.size == 1:
        check_unembedding(model)
    if section.lora.rank:
        seed = seeds.derive(config.seed, "preference_lora")
        adapters.add(model, section.lora, base=path, field="preference.lora", seed=seed)
    compiling.prepare_blocks(model, section, field="preference")
    nn.Module.eval(model)
    return model, tokenizer


def _with_reference(
    config: RunConfig, policy: Policy, examples: data.Examples, tracker: Tracker
) -> tuple[list[Compared], list[Compared]]:
    """Return training and held-out examples with the log-probs of the initial policy."""
    group = policy.root.group
    cache = ReferenceCache(
        config.folder.reference_logprobs,
        model=model_digest(config, inputs.collect("preference", config)),
        group=group,
    )
    stop = partial(agree_to_stop, group)
    every = (*examples.train, *examples.heldout)
    with stops_agreed(group), adapters.disabled(policy.root.model):
        reference_S = cache.logprobs(
            [sequence for example in every for sequence in example.sequences],
            partial(policy.logprobs, on_micro_batch=stop),
            doing=tracker.doing,
        )
    group.idle("has computed the reference")
    found = compared(every, reference_S)
    return found[: len(examples.train)], found[len(examples.train) :]


def _train(
    training: ModelTraining,
    policy: Policy,
    known: Sequence[Compared],
    heldout: Sequence[Compared],
    tracker: Tracker,
) -> tuple[float, Heldout]:
    """Train from the newest checkpoint to the last epoch; return its mean loss and the held-out figures."""
    stop = partial(agree_to_stop, training.root.group)
    found: list[Heldout] = []

    def parts(indices: list[int]) -> Parts:
        return policy.parts([known[index] for index in indices])

    def measure() -> None:
        tracker.doing("comparing held-out answers", 0, len(heldout))
        found.append(evaluate(policy, heldout, on_micro_batch=stop))
        if heldout:
            figures = {f"heldout_{name}": value for name, value in found[-1].figures.items()}
            tracker.record(training.position.step, {**figures, "epoch": training.position.epoch + 1})
            finite.check_mean("preference", "held-out loss", figures["heldout_loss"])
            if training.root.group.is_first:
                _warn_if_chosen_fall(found[-1], training)

    return training.epochs(len(known), parts, measure, tracker), found[-1]


def _warn_if_chosen_fall(found: Heldout, training: ModelTraining) -> None:
    """Warn if preferred answers have become less likely, by more than their standard error explains."""
    change = found.figures["chosen_change"]
    if not change < -2 * found.chosen_error:
        return
    raised = "raise preference.sft_coefficient or preference.beta, or lower preference.learning_rate"
    if not training.section.is_paired:  # type: ignore[union-attr]
        raised = "raise preference.desirable_weight or preference.beta, or lower preference.learning_rate"
    logger.warning(
        "epoch %d: held-out preferred answers are less likely than under the reference (%.2f nats per "
        "answer, the others %.2f): probability may move to answers that nobody has compared; %s",
        *(training.position.epoch + 1, change, found.figures["rejected_change"], raised),
    )


def _figures(found: Heldout, *, seed: int) -> Result:
    """Return the held-out figures of the result, with intervals of the accuracy."""
    count = sum(map(len, found.margins.values()))
    figures = dict(found.figures)
    wilson = wilson_interval(figures["accuracy"], count) if count else (0.0, 1.0)
    return {
        "heldout_loss": figures.pop("loss"),
        **figures,
        "accuracy_interval": list(wilson),
        "accuracy_interval_by_prompt": list(interval_by_prompt(found.margins, seed=seed)),
    }
