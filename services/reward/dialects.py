"""The protocols in which the reward service is spoken to, whatever scores."""

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
from services.runtime.streams import Bounds

logger = logging.getLogger(__name__)


STREAM_MAX_REQUESTS = 256
"""Requests of one stream in progress, enough to fill batches; no more are read until results are sent."""


class Dialects:
    """Every servicer of the reward service."""

    def __init__(
        self,
        scoring: Scoring,
        section: RewardSection,
        *,
        asks_for_keys: bool,
        ready: Callable[[], bool],
        limits: ServerSection | None = None,
    ) -> None:
        """
        Args:
            scoring: what scores.
            section: names and limits.
            asks_for_keys: whether callers show API keys.
            ready: whether the server is.
            limits: of the server; None for the defaults.
        """
        limits = limits or ServerSection()
        bounds = Bounds(STREAM_MAX_REQUESTS, limits.max_message_bytes)
        may = {"auto": asks_for_keys, "always": True, "never": False}[section.allow_reload]
        self._adders: list[Callable[[aio.Server], None]] = [
            RewardServicer(scoring, bounds).add_to,
            admin_servicer.RewardAdminServicer(scoring, allowed=may).add_to,
        ]
        self.names = [SERVICE_NAME, admin_servicer.SERVICE_NAME]
        """Full names of the services."""
        try:
            from services.reward import open_inference
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "tritonclient":
                raise
            logger.warning(
                "no Open Inference Protocol: tritonclient is missing (%s)", install_command("triton")
            )
            return
        servicer = open_inference.OpenInferenceServicer(scoring, section, bounds, ready=ready)
        self._adders.append(servicer.add_to)
        self.names.append(open_inference.SERVICE_NAME)

    def add_to(self, server: aio.Server) -> None:
        """Registers them."""
        for add in self._adders:
            add(server)
