"""The embedded engine: a transformers model decoded by a thread in this process.

Implements engine.py. The thread is in engine_thread.py; front.py is the asyncio side.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead import metrics
from fairlead.config.serving import PolicySection
from fairlead.data.control import policy_stop_ids
from fairlead.nn.loading import eos_token_ids
from fairlead.transports.weights.base import Adapter, Probe
from fairlead.types import ModelInfo, WeightVersion
from services.policy.engine_thread import EngineThread
from services.policy.front import EngineFront, EngineLimits
from services.policy.replacement import Replacement
from services.policy.scheduler import Scheduler
from services.policy.static.choice import choose


class TransformersEngine(EngineFront):
    """Implements `Engine` with a transformers model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        info: ModelInfo,
        *,
        limits: EngineLimits,
        policy_metrics: metrics.PolicyMetrics,
        section: PolicySection | None = None,
        initial: WeightVersion | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """
        Args:
            model: the model, on its device.
            tokenizer: its tokenizer.
            info: description of the model.
            limits: limits and options.
            policy_metrics: metrics of the policy service.
            section: says how samples are decoded; None for the default.
            initial: version of the weights that the model has already; None if `load` brings the first.
            adapter: the adapters that were added to the model; versions then hold adapters, too.

        Raises:
            ModelLoadError: if the decoder does not compute what the model computes.
            ConfigError: if the model does not support a setting of the section.
        """
        self._model = model
        self._thread = EngineThread(
            choose(
                model, section or PolicySection(), slots=limits.max_slots, longest=info.max_sequence_tokens
            ),
            Scheduler(slots=limits.max_slots, max_queue_tokens=limits.max_queue_tokens),
            policy_metrics,
            finish_before_swap=limits.finish_before_swap,
            initial=initial,
        )
        stop_ids = eos_token_ids(model, tokenizer) | policy_stop_ids(tokenizer)
        super().__init__(
            self._thread,
            tokenizer,
            info,
            limits=limits,
            stop_ids=stop_ids,
            adapter=adapter,
            policy_metrics=policy_metrics,
        )

    async def _swap(
        self, version: WeightVersion, folder: Path, adapter: Adapter | None, probe: Probe | None
    ) -> None:
        """Read weights next to those in use, then swap.

        The probe is not used: every tensor of the files replaces the tensor of its name in the model.
        """
        replacement = await asyncio.to_thread(Replacement.read, folder, self._model)
        await asyncio.wrap_future(self._thread.swap(version, replacement))
