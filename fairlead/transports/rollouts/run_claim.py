"""The claim of a run's name in Redis, so that two runs of one name in two folders do not share a queue.

The trainer holds it while it works; `fairlead ppo` checks it before it starts a process. It expires, so that
a run that was killed does not block its name, and it protects nothing by itself: the fence does.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self, cast

from fairlead.config import RunFolder
from fairlead.config.infrastructure import QueueSection
from fairlead.errors import ConfigError, FairleadError
from fairlead.transports.rollouts.redis_connection import (
    Keys,
    address,
    connect,
    errors_of,
)

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
"""A claim that is not renewed for this time expires."""


@dataclass(frozen=True, slots=True)
class RunOwner:
    """The run that uses a name."""

    id: str
    """Random; kept in the run's folder, so that it stays the same after a restart or a move of the folder."""
    folder: str
    """Absolute path of the folder."""
    host: str
    """Machine or pod of the trainer."""

    @classmethod
    def of(cls, folder: RunFolder) -> RunOwner:
        """Return the owner of a run's folder; creates its id if it has none."""
        path = folder.run_id
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(secrets.token_hex(16) + "\n", encoding="utf-8")
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
        except OSError:  # a volume without hard links
            if not path.exists():
                aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        text = path.read_text(encoding="utf-8").strip()
        return cls(text, str(folder.root.resolve()), socket.gethostname())


class RunClaim:
    """The claim of one trainer; a context manager that renews it in a thread."""

    def __init__(self, section: QueueSection, *, run: str, owner: RunOwner) -> None:
        """Nothing is claimed yet.

        Raises:
            ConfigError: if the URL is invalid.
        """
        self._run = run
        self._owner = owner
        self._key = Keys(run).claim
        self._client = connect(section)
        self._where = address(section.redis_url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="run-claim", daemon=True)

    def check(self) -> None:
        """Check that no other active run has the name.

        Raises:
            ConfigError: if one has; names its folder.
            QueueUnavailable, QueueMisconfigured: if Redis does not answer, or refuses.
        """
        with errors_of(self._where):
            self._refuse_other(cast("bytes | None", self._client.get(self._key)))

    def take(self) -> None:
        """Claim the name; repeatable.

        Raises:
            ConfigError, QueueUnavailable, QueueMisconfigured: as `check`.
        """
        mine, lease_ms = json.dumps(asdict(self._owner)), int(LEASE_SECONDS * 1000)
        with errors_of(self._where):
            if not self._client.set(self._key, mine, px=lease_ms, nx=True):
                self._refuse_other(cast("bytes | None", self._client.get(self._key)))
                self._client.set(self._key, mine, px=lease_ms)

    def __enter__(self) -> Self:
        """Renew the claim, which was taken, until the end of the block."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the name back."""
        self._stop.set()
        self._thread.join()
        try:
            self.check()
            with errors_of(self._where):
                self._client.delete(self._key)
        except FairleadError as failure:
            logger.debug("the name of the run is not given back: %s", failure)
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            try:
                self.take()
            except ConfigError as error:
                logger.error("another run took over the name of this one: %s", error)
            except FairleadError as error:
                logger.debug("the name of the run is not renewed: %s", error)

    def _refuse_other(self, held: bytes | None) -> None:
        try:
            owner = RunOwner(**json.loads(held)) if held else None
        except (ValueError, TypeError):
            owner = None
        if owner is None or owner.id == self._owner.id:
            return
        raise ConfigError(
            "name",
            got=self._run,
            allowed=f"another name than that of {owner.folder}, which is active on {owner.host} with the "
            f"same Redis ({self._where}); or another database of that Redis, such as queue.redis_url = "
            f"redis://HOST:PORT/1. A run that was killed keeps its name for {LEASE_SECONDS:g} s",
        )


def check_name(section: QueueSection, *, run: str, folder: RunFolder) -> None:
    """Check that no other active run has the name; a Redis that does not answer is left to the trainer.

    Raises:
        ConfigError: if one has, or the URL is invalid.
    """
    claim = RunClaim(section, run=run, owner=RunOwner.of(folder))
    try:
        claim.check()
    except ConfigError:
        raise
    except FairleadError as error:
        logger.debug("the name of the run is not checked: %s", error)
    finally:
        claim.close()
