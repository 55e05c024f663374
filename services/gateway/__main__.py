"""Start the gateway: configuration → clients → dialects → HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.errors import ConfigError
from fairlead.metrics import page as metrics_page
from services.gateway.app import make_app
from services.gateway.backend import Backend
from services.gateway.collection import collector_of
from services.gateway.exchange_log import ExchangeLog
from services.runtime import process
from services.runtime.access.control import AccessControl
from services.runtime.http.server import HttpServer

logger = logging.getLogger(__name__)


async def run(config: RunConfig) -> None:
    """Serve until a signal, then drain."""
    async with contextlib.AsyncExitStack() as stack:
        access = AccessControl(config.keys, access_metrics=metrics.AccessMetrics())
        stack.push_async_callback(access.close)
        server = await stack.enter_async_context(
            HttpServer(
                config.gateway,
                name="gateway",
                drain_seconds=config.server_limits("gateway").drain_seconds,
                tls=config.tls,
            )
        )
        backend = await stack.enter_async_context(Backend(config))
        if backend.reward is None and backend.policy is None:
            raise ConfigError(
                "reward.addresses", got=config.reward.addresses, allowed="the address of the reward service"
            )

        def ready() -> bool:
            return backend.available and not server.draining

        port, stop_metrics = metrics_page.serve(config.observe, tls=config.tls, ready=ready)
        stack.push_async_callback(asyncio.to_thread, stop_metrics)
        fields = {"address": server.address, "metrics_port": port}
        logger.info("gateway listens on %s", server.address, extra=fields)
        style = config.observe.access_log
        server.warn(asks_for_keys=access.requires_keys, logs_texts=style == "texts")
        exchange_log = None
        if config.gateway.chat_log:
            exchange_log = ExchangeLog(config.gateway)
            stack.callback(exchange_log.close)
        collector = collector_of(config, metrics.CollectMetrics())
        if collector is not None:
            await stack.enter_async_context(collector)
        app = make_app(
            backend,
            config.gateway,
            ready=ready,
            access=access,
            access_log=style,
            exchange_log=exchange_log,
            collector=collector,
        )
        await server.serve(app)


if __name__ == "__main__":
    sys.exit(process.main("gateway", run))
