"""Connecting to a Redis that can carry a run: its address, its checks, its errors in our own words.

Shared by the worker's and the trainer's face of the Redis queue. It knows nothing of tasks or streams.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fairlead.config.infrastructure import QueueSection
from fairlead.errors import ConfigError, CorruptData, Fenced, QueueMisconfigured, QueueUnavailable

logger = logging.getLogger(__name__)

_OLDEST_MAJOR_VERSION = 7
_ANSWER_SECONDS = 10.0
_CONNECT_SECONDS = 5.0

_APPENDFSYNC = {
    "always": "a crash of the machine loses no acknowledged write",
    "everysec": "a crash of the machine loses about the last second, which the trainer sends again",
    "no": "a crash of the machine loses up to half a minute, which the trainer sends again",
}


def check_url(section: QueueSection) -> str:
    """The URL of the queue.

    Raises:
        ConfigError: if there is none, or it is not one of Redis.
    """
    allowed = "redis://host:port, rediss://host:port or unix://path; `fairlead ppo` starts a server if empty"
    url = section.redis_url
    if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
        raise ConfigError("queue.redis_url", got=without_password(url), allowed=allowed)
    try:
        redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigError(
            "queue.redis_url", got=f"{without_password(url)} ({error})", allowed=allowed
        ) from None
    return url


def without_password(url: str) -> str:
    """The URL as it may be shown: user and password left out."""
    head, separator, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://…@{tail}" if separator else url


def address(url: str) -> str:
    """`host:port`, or the path of a socket, for messages."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def client_options(section: QueueSection) -> dict[str, Any]:
    """Options of both clients. Nothing is retried in silence: to wait and to reconcile is the caller's."""
    return {
        "password": section.password.get_secret_value() if section.password else None,
        "socket_timeout": _ANSWER_SECONDS,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_keepalive": True,
        "protocol": 2,
        "decode_responses": False,
        **tls_options(
            section.redis_url,
            section="queue.tls",
            ca=section.tls_ca,
            certificate=section.tls_certificate,
            key=section.tls_key,
        ),
    }


def tls_options(url: str, *, section: str, ca: str, certificate: str, key: str) -> dict[str, Any]:
    """Options of a client for `rediss://`: whom it trusts and what it shows.

    Args:
        url: of the server.
        section: of the settings, such as `queue.tls`, for messages.
        ca: file of authorities; empty for those of the system.
        certificate: file of the client's own; empty for none.
        key: file of its private key.

    Raises:
        ConfigError: for a file that is not there, or settings that a URL without TLS would ignore.
    """
    files = {f"{section}_ca": ca, f"{section}_certificate": certificate, f"{section}_key": key}
    for field, path in files.items():
        if path and urlsplit(url).scheme != "rediss":
            raise ConfigError(field, got=path, allowed="nothing but with a rediss:// URL")
        if path and not Path(path).is_file():
            raise ConfigError(field, got=path, allowed="a PEM file")
    options = {"ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key}
    found: dict[str, Any] = {name: path for name, path in options.items() if path}
    return found | {"ssl_check_hostname": True} if urlsplit(url).scheme == "rediss" else found


def no_retry() -> Retry:
    """A policy of one try, for the synchronous client."""
    return Retry(NoBackoff(), 0)


@contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Turns the client's errors into ours; `where` is the server's address."""
    try:
        yield
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise QueueMisconfigured(
            f"Redis at {where} refuses us ({error}): set queue.password (FAIRLEAD_QUEUE__PASSWORD), and let "
            "its user run all stream, hash, string and scripting commands on fairlead:*"
        ) from None
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise QueueMisconfigured(
                f"the certificate of Redis at {where} is not trusted ({_first_line(error)}): set queue.tls_ca"
            ) from None
        raise QueueUnavailable(
            f"Redis at {where} does not answer ({_first_line(error)}): "
            "check that it runs and that queue.redis_url is right"
        ) from error
    except redis.ResponseError as error:
        raise _from_answer(where, error) from error


def _from_answer(where: str, error: redis.ResponseError) -> Exception:
    text = _first_line(error)
    if "FENCED" in text:
        return Fenced(f"another trainer holds the fence of this run at {where} ({text}): this one must stop")
    if isinstance(error, redis.exceptions.OutOfMemoryError) or "OOM" in text:
        return QueueUnavailable(f"Redis at {where} is full ({text}): raise its maxmemory")
    if isinstance(error, redis.exceptions.ReadOnlyError) or text.startswith(
        ("MISCONF", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "BUSY ", "UNBLOCKED", "LOADING")
    ):
        return QueueUnavailable(f"Redis at {where} takes no writes now ({text})")
    if "NOPERM" in text or "NOAUTH" in text:
        return QueueMisconfigured(
            f"Redis at {where} refuses us ({text}): set queue.password or its user's rights"
        )
    if "WRONGTYPE" in text:
        return CorruptData(f"Redis at {where} holds something else under a key of this run ({text})")
    return error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def check_server(info: Mapping[str, object], *, where: str, appendfsync: str | None) -> None:
    """Refuses a server that would lose work, and logs what its durability means.

    Args:
        info: the answer to INFO.
        where: the server's address.
        appendfsync: the setting of that name; None if the server does not tell.

    Raises:
        QueueMisconfigured: if it is too old, or evicts keys when it is full.
    """
    version = str(info.get("redis_version", "0"))
    if int(version.partition(".")[0]) < _OLDEST_MAJOR_VERSION:
        raise QueueMisconfigured(f"Redis at {where} is version {version}: take Redis 7 or newer, or Valkey")
    policy = info.get("maxmemory_policy")
    if policy != "noeviction":
        raise QueueMisconfigured(
            f"Redis at {where} has maxmemory-policy {policy}, which deletes tasks when it is full: "
            "set it to noeviction (`CONFIG SET maxmemory-policy noeviction`, and in the server's file)"
        )
    if not int(str(info.get("aof_enabled", 0))):
        durability = "has no append-only file: a restart goes back to the last snapshot; set appendonly yes"
    elif appendfsync is None:
        durability = "has an append-only file and does not tell its appendfsync"
    else:
        durability = f"has appendfsync {appendfsync}: {_APPENDFSYNC.get(appendfsync, 'unknown')}"
    logger.info("Redis %s at %s %s", info.get("valkey_version", version), where, durability)
