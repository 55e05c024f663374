"""Settings of every test: no progress bars, few threads, no access to the hub."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from hypothesis import settings

from tests import postgres_server

settings.register_profile("steady", derandomize=True, max_examples=50)
"""Uses the same examples in every run of `make test`; `make test-slow` draws new ones."""

# Otherwise the runner builds all commands of `fairlead` in each call, which takes 75 ms of CPU.
typer.testing._get_command = functools.cache(typer.testing._get_command)

pytest.register_assert_rewrite("tests.engine_contract")

# Set before torch and transformers are imported, also for child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# A shell ignores SIGINT for commands in the background, and `nohup` SIGHUP; processes that a test stops would
# inherit that.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)
for name in [name for name in os.environ if name.startswith("FAIRLEAD_")]:
    del os.environ[name]

# gRPC polls for all event loops, and logs errors about loops that earlier tests have closed.
logging.getLogger("asyncio").addFilter(lambda record: "PollerCompletionQueue" not in record.getMessage())


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the test files without garbage collection, and exempt what they import from it.

    It takes a tenth of the time of the imports, and half a second whenever a test or a service asks for it.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Return the scheduler of `--dist loadfile`: the tests of a file stay in one process.

    So do all tests that call the shared services, which start once.
    """
    from xdist.scheduler import LoadFileScheduling

    class TogetherByServices(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "shared services" if _calls_shared_services(file) else file

    return TogetherByServices(config, log) if config.getoption("dist") == "loadfile" else None


@functools.cache
def _calls_shared_services(file: str) -> bool:
    return "SharedServices" in (Path(__file__).parents[1] / file).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Undo changes that a test makes to the root logger."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    # pytest itself adds and removes handlers in each phase of a test.
    for handler in root.handlers[:]:
        if handler not in handlers and not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[tuple[str, Path]]:
    """Yield the address and the folder of a PostgreSQL server, or skip the test where there is none."""
    if reason := postgres_server.missing():
        pytest.skip(reason)
    with postgres_server.running() as server:
        yield server
