"""vLLM as an engine: implements engine.py with an `AsyncLLM` in this process.

The parts: options.py (configuration), backend.py (decoding), weights.py and version_files.py (weights),
worker.py (what runs in vLLM's own processes).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.data.control import policy_stop_ids
from fairlead.errors import ConfigError, EngineFailed
from fairlead.nn.loading import eos_token_ids
from fairlead.transports.weights.base import Adapter, Probe
from fairlead.types import ModelInfo, WeightVersion
from services.policy.front import EngineFront, EngineLimits
from services.policy.vllm import options
from services.policy.vllm.version_files import ExpectedTensors, check_names
from services.vllm import memory
from services.vllm.install import in_one_line


class VllmEngine(EngineFront):
    """Implements `Engine` with vLLM."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        info: ModelInfo,
        *,
        config: RunConfig,
        limits: EngineLimits,
        policy_metrics: metrics.PolicyMetrics,
        adapter: Adapter | None = None,
    ) -> None:
        """Start vLLM, which takes from half a minute to some minutes.

        Args:
            model: the model; only its shapes are used.
            tokenizer: its tokenizer.
            info: description of the model; `model_id` is where its weights are.
            config: the run.
            limits: limits and options.
            policy_metrics: metrics of the policy service.
            adapter: the adapters that were added to the model; versions then hold adapters, too.

        Raises:
            ConfigError: if vLLM is missing, refuses an option, or cannot load weight versions of the model.
            EngineFailed: if vLLM does not start with the model.
        """
        path = info.model_id
        arguments = options.engine_args(config, path, max_sequence_tokens=info.max_sequence_tokens)
        # Imported here because the options set the environment that vllm reads when it is imported.
        from vllm.v1.engine.async_llm import AsyncLLM

        from services.policy.vllm.backend import InUse, VllmBackend
        from services.policy.vllm.steps import StepRecorder
        from services.policy.vllm.weights import WeightSwap

        self._expected = ExpectedTensors(model)
        if adapter is None:
            check_names(model)
        try:
            settings = arguments.create_engine_config()
        except (ValueError, TypeError, NotImplementedError) as error:
            allowed = f"options that vLLM takes for this model: {in_one_line(error)}"
            raise ConfigError("policy.vllm", got=config.policy.vllm, allowed=allowed) from error
        memory.check_free(settings, section="policy.vllm")
        steps = StepRecorder(policy_metrics)
        try:
            llm = AsyncLLM.from_vllm_config(settings, stat_loggers=[steps], disable_log_stats=True)
        except Exception as error:
            raise EngineFailed(f"vLLM did not start with {path!r}: {in_one_line(error)}") from error
        self._vllm = VllmBackend(
            llm, policy_metrics, steps, limits=limits, vocabulary_size=info.vocabulary_size
        )
        self._weights = WeightSwap(
            self._vllm,
            policy_metrics,
            first=path,
            info=info,
            finish_before_swap=limits.finish_before_swap,
            on_several_nodes=settings.parallel_config.nnodes > 1,
        )
        if config.policy.serve_initial:
            self._vllm.use(InUse(WeightVersion(0, 0)))
        stop_ids = eos_token_ids(model, tokenizer) | policy_stop_ids(tokenizer)
        super().__init__(
            self._vllm,
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
        """Check the files against the model, then swap.

        An adapter is loaded next to the one in use: running samples keep theirs to their end.
        """
        self._vllm.start()
        await asyncio.to_thread(self._expected.check, folder)
        if adapter is None:
            await self._weights.swap(version, folder, probe)
        else:
            await self._weights.add(version, folder, adapter, probe)

    async def wait_failed(self) -> None:
        """Wait until vLLM has ended, and raise the error; see `Engine.wait_failed`."""
        self._vllm.start()
        await super().wait_failed()

    def close(self) -> None:
        """Stop vLLM; pending requests fail with Unavailable."""
        super().close()
        self._weights.close()
