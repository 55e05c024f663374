"""The protocols of the reward service: every servicer over one `Scoring`."""

from __future__ import annotations

import logging
from collections.abc import Callable

from grpc import aio

from fairlead.config.base import ServerSection
from fairlead.config.serving import RewardSection
from fairlead.errors import install_command
from services.reward import admin_servicer
from services.reward.scoring import Scoring
from services.reward.servicer import SERVICE_NAME, RewardServicer
from services.runtime.limits import MAX_TURNS
from services.runtime.streams import Bounds
from services.runtime.wire_limits import WireLimits

logger = logging.getLogger(__name__)

STREAM_MAX_REQUESTS = 256
"""Requests of one stream in progress, enough to fill batches; no more are read until results are sent."""


MAX_TENSORS = 16
"""Tensors, and dimensions of a tensor, of a request of the Open Inference Protocol; more are never valid."""


_NAMES = frozenset(
    {
        "fairlead.v1.ScoreRequest.model_version",
        "fairlead.v1.PromoteCanaryRequest.model_version",
        "inference.ModelInferRequest.model_name",
        "inference.ModelInferRequest.model_version",
        *(
            f"inference.{message}Request.{field}"
            for message in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
            for field in ("name", "version")
        ),
    }
)
"""Fields of requests that name a model or a version."""


class Dialects:
    """The servicers of the reward service."""

    def __init__(
        self,
        scoring: Scoring,
        section: RewardSection,
        *,
        requires_keys: bool,
        ready: Callable[[], bool],
        limits: ServerSection | None = None,
    ) -> None:
        """
        Args:
            scoring: computes the scores.
            section: name of the model and limits.
            requires_keys: whether callers must send API keys.
            ready: returns whether the server accepts requests.
            limits: limits of the server; None for the defaults.
        """
        limits = limits or ServerSection()
        bounds = Bounds(STREAM_MAX_REQUESTS, limits.max_message_bytes)
        may_replace = {"auto": requires_keys, "always": True, "never": False}[section.allow_reload]
        self._adders: list[Callable[[aio.Server], None]] = [
            RewardServicer(scoring, bounds, max_items=section.batching.max_items).add_to,
            admin_servicer.RewardAdminServicer(scoring, allowed=may_replace).add_to,
        ]
        self.wire_limits = WireLimits(
            entries={
                "fairlead.v1.ScoreRequest.items": section.batching.max_items,
                "fairlead.v1.TextPair.messages": MAX_TURNS,
                "inference.ModelInferRequest.inputs": MAX_TENSORS,
                "inference.ModelInferRequest.outputs": MAX_TENSORS,
                "inference.ModelInferRequest.raw_input_contents": MAX_TENSORS,
                "inference.ModelInferRequest.InferInputTensor.shape": MAX_TENSORS,
                # Where few rows are too many, services/open_inference refuses them, with their number.
                "inference.InferTensorContents.bytes_contents": 4 * section.batching.max_items,
            },
            max_numbers=2 * section.batching.max_queue_tokens,
            max_text_bytes=section.max_text_bytes,
            names=_NAMES,
        )
        """What the requests may contain."""
        self.names = [SERVICE_NAME, admin_servicer.SERVICE_NAME]
        """Full names of the services, for health and reflection."""
        try:
            from services.reward import open_inference
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "tritonclient":
                raise
            logger.warning(
                "the Open Inference Protocol is not served: tritonclient is not installed (%s)",
                install_command("triton"),
            )
            return
        servicer = open_inference.OpenInferenceServicer(scoring, section, bounds, ready=ready)
        self._adders.append(servicer.add_to)
        self.names.append(open_inference.SERVICE_NAME)

    def add_to(self, server: aio.Server) -> None:
        """Register the servicers."""
        for add in self._adders:
            add(server)
