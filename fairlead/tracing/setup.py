"""Switch tracing on for a process: settings and environment → recorder and exporter.

Imports OpenTelemetry only when tracing is on.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fairlead import log
from fairlead.errors import ConfigError
from fairlead.tracing import spans

if TYPE_CHECKING:
    # Clients import this package; they start without pydantic.
    from fairlead.config.infrastructure import ObserveSection

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Environment variables that name the backend, as for every program with OpenTelemetry."""
PATH = "/v1/traces"
"""Of the receiver of spans; added to the base address of a backend."""


@contextmanager
def start(
    observe: ObserveSection,
    *,
    run: str,
    process: str,
    counter: Callable[[], Callable[[str, int], None]],
) -> Iterator[None]:
    """Trace the code of the body, if the settings or the environment name a backend; then send what is left.

    Args:
        observe: the settings.
        run: name of the run.
        process: name of this process's service, such as `policy`.
        counter: makes, if tracing is on, what counts spans: a function that is called with `sent`, `dropped`
            or `failed`, and their number.

    Raises:
        ConfigError: if `observe.otlp_endpoint` is set and the extra is not installed.
    """
    endpoint = _endpoint(observe)
    if endpoint is None:
        yield
        return
    if not _is_installed():
        if observe.otlp_endpoint:
            raise ConfigError(
                "observe.otlp_endpoint",
                got=f"{observe.otlp_endpoint}, without OpenTelemetry",
                allowed="an endpoint after `pip install 'fairlead-rlhf[otel]'`, or empty",
            )
        logger.warning(
            "no traces: the environment names a backend (%s), but OpenTelemetry is not installed: "
            "pip install 'fairlead-rlhf[otel]'",
            next(name for name in ENDPOINTS if os.environ.get(name)),
        )
        yield
        return
    from fairlead.tracing.export import Export

    export = Export(
        endpoint,
        run=run,
        process=process,
        one_in=observe.trace_one_in,
        on_spans=counter(),
    )
    spans.use(export)
    log.add_source(spans.log_fields)
    logger.info("traces of 1 task in %d are sent to %s", observe.trace_one_in, export.endpoint)
    try:
        yield
    finally:
        spans.use(None)
        export.close()


def _endpoint(observe: ObserveSection) -> str | None:
    """Return the address that spans are sent to; "" for that of the environment; None: tracing is off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if observe.otlp_endpoint:
        base = observe.otlp_endpoint.rstrip("/")
        return base if base.endswith(PATH) else base + PATH
    return "" if any(os.environ.get(name) for name in ENDPOINTS) else None


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False
