"""Start the feedback service: configuration → store → app → HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from dataclasses import fields
from pathlib import Path

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.config.feedback import FeedbackSection
from fairlead.errors import ConfigError, InvalidInput
from fairlead.metrics import page as metrics_page
from services.feedback.api.bodies import wire_names
from services.feedback.api.task_lines import add_all, tasks_of
from services.feedback.app import make_app
from services.feedback.gauges import keep_gauges
from services.feedback.service import Service, needs_no_sign_in
from services.feedback.store import Store, open_store
from services.feedback.store.records import ProjectSettings
from services.feedback.store_threads import StoreThreads
from services.runtime import process
from services.runtime.access.control import AccessControl
from services.runtime.http.cookies import SessionCookie
from services.runtime.http.server import HttpServer

logger = logging.getLogger(__name__)


async def run(config: RunConfig) -> None:
    """Serve until a signal, then drain."""
    section = config.feedback
    async with contextlib.AsyncExitStack() as stack:
        access = AccessControl(config.keys, access_metrics=metrics.AccessMetrics())
        stack.push_async_callback(access.close)
        server = await stack.enter_async_context(
            HttpServer(
                section,
                name="feedback",
                drain_seconds=config.server_limits("feedback").drain_seconds,
                tls=config.tls,
            )
        )
        if "://" not in config.feedback_store:
            Path(config.feedback_store).parent.mkdir(parents=True, exist_ok=True)
        store = await asyncio.to_thread(open_store, config.feedback_store)
        stack.callback(store.close)
        await asyncio.to_thread(ensure_project, store, section)
        await asyncio.to_thread(add_tasks, store, section)
        feedback_metrics = metrics.FeedbackMetrics()
        threads = StoreThreads(feedback_metrics)
        stack.callback(threads.close)
        service = Service(
            store=store,
            threads=threads,
            metrics=feedback_metrics,
            section=section,
            cookie=SessionCookie("fairlead_feedback", secure=section.origin.startswith("https:")),
            is_open=needs_no_sign_in(section, server.address, requires_keys=access.requires_keys),
        )
        gauges = asyncio.create_task(keep_gauges(service), name="gauges")
        stack.callback(gauges.cancel)

        def ready() -> bool:
            return not server.draining

        port, stop_metrics = metrics_page.serve(config.observe, tls=config.tls, ready=ready)
        stack.push_async_callback(asyncio.to_thread, stop_metrics)
        where = section.origin or f"http://{server.address}"
        fields = {"address": server.address, "metrics_port": port, "store": config.feedback_store}
        logger.info("feedback listens on %s%s", where, section.root_path, extra=fields)
        style = config.observe.access_log
        server.warn(asks_for_keys=True, logs_texts=style == "texts")
        await server.serve(make_app(service, ready=ready, access=access, access_log=style))


def ensure_project(store: Store, section: FeedbackSection) -> None:
    """Create the project of the configuration; if the store has it already, say what differs."""
    wanted = ProjectSettings(**section.project.model_dump())
    known = next((one.settings for one in store.projects.all() if one.settings.name == wanted.name), None)
    if known is None:
        store.projects.create(wanted)
        return
    kept = {field.name: getattr(known, field.name) for field in fields(known)}
    if changed := [name for name, value in kept.items() if value != getattr(wanted, name)]:
        logger.warning(
            "feedback.project: the store has the project %s with other values, which stay: %s; a lead "
            "changes them by PATCH /v1/feedback/projects/%s",
            *(wanted.name, ", ".join(f"{name} = {kept[name]!r}" for name in changed), wanted.name),
        )


def add_tasks(store: Store, section: FeedbackSection) -> None:
    """Add the tasks of the files of the configuration.

    Raises:
        ConfigError: a file cannot be read, or one of its lines is no task of the project.
    """
    for name in section.tasks:
        try:
            new = tasks_of(Path(name).read_bytes(), store)
            project = store.projects.get(section.project.name)
            with wire_names():
                count = add_all(store, project.id, new)
        except OSError as error:
            wrong = ConfigError("feedback.tasks", got=f"{name} ({error.strerror})", allowed="files to read")
            raise wrong from error
        except InvalidInput as error:
            wrong = ConfigError(
                f"feedback.tasks: {name}: {error.where}", got=error.got, allowed=error.allowed
            )
            raise wrong from error
        logger.info("%d new tasks of %s, %d known before", count, name, len(new) - count)


if __name__ == "__main__":
    sys.exit(process.main("feedback", run))
