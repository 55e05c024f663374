"""Load weight versions into vLLM, and use a version only after it computed what the trainer computed.

vLLM loads files by code of its own, whose mistakes are silent: a packed copy that is not renewed, keys and
values of old weights, a load that ends half-way. So a version is checked before the pause (version_files.py),
and after it by the log-probs of a probe. If it is bad, the one before it is loaded again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from pathlib import Path

from vllm import SamplingParams, TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from fairlead import metrics, watchdog
from fairlead.errors import CorruptWeights, EngineFailed, Unavailable
from fairlead.transports.weights.base import Adapter, Probe
from fairlead.types import ModelInfo, WeightVersion
from services.policy.vllm.backend import InUse, VllmBackend
from services.policy.vllm.version_files import HeldVersion

logger = logging.getLogger(__name__)

_MAX_DIFFERENCE = 1e-3
"""Largest difference of a log-prob of the probe if engine and trainer compute in float32; 3e-5 was measured
(docs/vllm.md)."""
_MEAN_DIFFERENCE_BF16 = 0.25
"""Mean difference over the probe if one of them computes in bfloat16; 0.05 was measured (docs/vllm.md)."""
_BEFORE_OTHERS = -1
"""Priority of the probe; that of samples is 0."""


class WeightSwap:
    """Swaps the weights of one vLLM engine."""

    def __init__(
        self,
        backend: VllmBackend,
        policy_metrics: metrics.PolicyMetrics,
        *,
        first: str,
        info: ModelInfo,
        finish_before_swap: bool,
        on_several_nodes: bool = False,
    ) -> None:
        """
        Args:
            backend: its engine has the weights of `first`.
            policy_metrics: metrics of the policy service.
            first: folder or hub id of the weights that the engine started with.
            info: description of the model.
            finish_before_swap: finish running samples before a swap.
            on_several_nodes: whether vLLM's processes on other machines read the files, too.
        """
        self._backend = backend
        self._llm = backend.llm
        self._metrics = policy_metrics
        self._dtype = info.dtype
        self._longest = info.max_sequence_tokens - 1
        self._finish_before_swap = finish_before_swap
        self._on_several_nodes = on_several_nodes
        self._first = first
        self._held: HeldVersion | None = None
        self._adapters: dict[LoRARequest, HeldVersion] = {}
        self._probe: Probe | None = None
        self._lock = asyncio.Lock()

    async def swap(self, version: WeightVersion, folder: Path, probe: Probe | None) -> None:
        """Replace all weights, between two steps.

        Raises:
            CorruptWeights: if they do not load, or do not compute what the trainer computed; the weights
                before them are in use.
        """
        async with self._lock:
            held = await asyncio.to_thread(HeldVersion, folder, on_several_nodes=self._on_several_nodes)
            with self._backend.no_new_samples():
                start = await self._pause()
                try:
                    with self._backend.trial(version):
                        await self._load(str(held.path), version)
                        await self._llm.resume_generation()
                        await self._try(probe, version)
                except Exception as error:
                    held.close()
                    await self._restore()
                    raise CorruptWeights(f"weights {version} were not taken into use: {error}") from error
                self._backend.use(InUse(version))
            self._held, before = held, self._held
            self._probe = probe
            if before is not None:
                before.close()
            self._report(version, time.perf_counter() - start)

    async def add(self, version: WeightVersion, folder: Path, adapter: Adapter, probe: Probe | None) -> None:
        """Load an adapter next to those in use; new samples start with it, running ones keep theirs.

        Raises:
            CorruptWeights: as `swap`.
        """
        async with self._lock:
            start = time.perf_counter()
            held = await asyncio.to_thread(HeldVersion, folder, adapter=adapter)
            # An id that is never used again; vLLM keeps prefixes in its cache by it.
            number = version.incarnation * 10**9 + version.update + 1
            lora = LoRARequest(str(version), number, str(held.path))
            try:
                with watchdog.PROCESS.waiting("model", f"vLLM loading the adapter {version}"):
                    await self._llm.add_lora(lora)
                await self._try(probe, version, lora)
            except Exception as error:
                held.close()
                raise CorruptWeights(f"weights {version} were not taken into use: {error}") from error
            self._backend.use(InUse(version, lora))
            for old, files in list(self._adapters.items()):
                if not self._backend.is_running(old):
                    await self._llm.remove_lora(old.lora_int_id)
                    files.close()
                    del self._adapters[old]
            self._adapters[lora] = held
            self._report(version, time.perf_counter() - start)

    def close(self) -> None:
        """Close the files."""
        for held in (self._held, *self._adapters.values()):
            if held is not None:
                held.close()

    async def _pause(self) -> float:
        """Pause decoding, drop all keys and values, and return when that was."""
        if self._finish_before_swap:
            await self._llm.pause_generation(mode="wait", clear_cache=True)
            return time.perf_counter()
        start = time.perf_counter()
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        return start

    async def _load(self, path: str, version: WeightVersion) -> None:
        with watchdog.PROCESS.waiting("model", f"vLLM loading weights {version}"):
            await self._llm.collective_rpc("load_version", args=(path,))
        # Nothing computed before the load may be used after it.
        if not await self._llm.reset_prefix_cache(reset_running_requests=True):
            raise Unavailable("vLLM did not clear its prefix cache")
        await self._llm.update_weight_version(str(version))

    async def _restore(self) -> None:
        """Load the weights in use again; end the engine if that fails."""
        before = self._backend.version
        logger.warning("loading weights %s again", before or "of the model's folder")
        unusable = Unavailable("the weights of this replica were replaced meanwhile")
        try:
            # Running samples may hold tokens of the bad weights.
            await self._backend.drop_running(unusable)
            await self._llm.pause_generation(mode="abort", clear_cache=True)
            path = self._first if self._held is None else str(self._held.path)
            await self._load(path, before or WeightVersion(0, 0))
            await self._llm.resume_generation()
            await self._try(self._probe, before)
        except Exception as error:
            self._backend.fail(
                EngineFailed(
                    f"neither the new weights nor weights {before} could be loaded ({error}): the process "
                    "ends, so that its next start loads the newest version"
                )
            )
            raise

    async def _try(
        self, probe: Probe | None, version: WeightVersion | None, lora: LoRARequest | None = None
    ) -> None:
        """Compare the log-probs of the probe with the trainer's.

        Raises:
            CorruptWeights: if they differ by more than rounding.
        """
        if probe is None:
            logger.warning("weights %s have no probe: nothing shows whether vLLM loaded them", version)
            return
        with watchdog.PROCESS.waiting("model", f"the probe of weights {version}"):
            found = await self._logprobs(probe.token_ids[: self._longest], lora)
        differences = [abs(ours - theirs) for ours, theirs in zip(found, probe.logprobs, strict=False)]
        mean, largest = sum(differences) / len(differences), max(differences)
        if not math.isfinite(mean):
            raise CorruptWeights("a log-prob of the probe is not finite")
        exact = self._dtype == probe.dtype == "float32"
        if largest > _MAX_DIFFERENCE if exact else mean > _MEAN_DIFFERENCE_BF16:
            limit = f"{_MAX_DIFFERENCE:g}" if exact else f"{_MEAN_DIFFERENCE_BF16:g} in the mean"
            raise CorruptWeights(
                f"the log-probs of the probe differ from the trainer's by up to {largest:.3g}, "
                f"{mean:.3g} in the mean; allowed: {limit}"
            )
        logger.info("probe of weights %s", version, extra={"largest": largest, "mean": mean})

    async def _logprobs(self, token_ids: tuple[int, ...], lora: LoRARequest | None) -> list[float]:
        """Return the log-prob of each token but the first, in requests of their own.

        vLLM could compute all of them as log-probs of a prompt, but not with an adapter.
        """
        return await asyncio.gather(
            *(self._logprob(token_ids[:end], token_ids[end], lora) for end in range(1, len(token_ids)))
        )

    async def _logprob(self, prompt: tuple[int, ...], token: int, lora: LoRARequest | None) -> float:
        """Return the log-prob of a token after a prompt."""
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=[token],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async for output in self._llm.generate(
            TokensPrompt(prompt_token_ids=list(prompt)),
            params,
            request_id=f"probe-{uuid.uuid4().hex}",
            lora_request=lora,
            priority=_BEFORE_OTHERS,
        ):
            logprobs = output.outputs[0].logprobs
            if logprobs:
                return float(logprobs[0][token].logprob)
        raise Unavailable("vLLM did not answer the probe")

    def _report(self, version: WeightVersion, seconds: float) -> None:
        self._metrics.swaps.inc()
        self._metrics.swap_seconds.observe(seconds)
        logger.info("weights %s in use", version, extra={"running_sequences": self._backend.num_running})
