"""The connection to a run's Redis: its keys and scripts, client options, server checks and error mapping.

Shared by the worker's side and the trainer's side of the Redis queue. Knows where things are stored, but not
what they mean: the scripts (`lua/*.lua`) and docs/queue-protocol.md define that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fairlead.config.infrastructure import (
    REDIS_URLS,
    QueueSection,
    RedisSection,
    redis_url_without_secrets,
)
from fairlead.errors import ConfigError, CorruptData, Fenced, QueueMisconfigured, QueueUnavailable

logger = logging.getLogger(__name__)

GROUP = "workers"
"""Consumer group of the prompts stream."""
RETURNED = "returned"
"""Consumer that owns entries that were given back, until a worker claims them."""

_OLDEST_MAJOR_VERSION = 7
_REPLY_SECONDS = 10.0
_CONNECT_SECONDS = 5.0

_APPENDFSYNC = {
    "always": "a crash of the machine loses no acknowledged write",
    "everysec": "a crash of the machine loses about the last second, which the trainer sends again",
    "no": "a crash of the machine loses up to half a minute, which the trainer sends again",
}


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one run. The run's name is a hash tag, so that one node of a cluster holds all of them."""

    run: str
    """Name of the run."""

    @property
    def prompts(self) -> str:
        """Stream of sendings, with the group `workers`."""
        return f"fairlead:{{{self.run}}}:prompts"

    @property
    def rollouts(self) -> str:
        """Stream of outcomes, without a group."""
        return f"fairlead:{{{self.run}}}:rollouts"

    @property
    def outstanding(self) -> str:
        """Hash: task → `<incarnation>:<number>:<failures>:<entry>` of its open sending."""
        return f"fairlead:{{{self.run}}}:outstanding"

    @property
    def fence(self) -> str:
        """String: `<incarnation>:<token>` of the trainer that may write."""
        return f"fairlead:{{{self.run}}}:fence"

    @property
    def claim(self) -> str:
        """String that expires: which run uses the name (`run_claim`); no script reads it."""
        return f"fairlead:{{{self.run}}}:claim"

    def all(self) -> tuple[str, str, str, str]:
        """Return all keys in the order that every script expects."""
        return (self.prompts, self.rollouts, self.outstanding, self.fence)


@cache
def script(name: str) -> str:
    """Return the source of a script: its shebang, the shared prelude, its body."""
    folder = resources.files(__package__) / "lua"
    shebang, _, body = (folder / f"{name}.lua").read_text(encoding="utf-8").partition("\n")
    return f"{shebang}\n{(folder / 'prelude.lua').read_text(encoding='utf-8')}{body}"


def check_url(section: QueueSection) -> str:
    """Return the URL of the queue.

    Raises:
        ConfigError: if the URL is empty or not a Redis URL; it may contain a password and is not quoted.
    """
    url = section.redis_url
    if not url:
        allowed = f"{REDIS_URLS}; `fairlead ppo` starts a server if it is empty"
        raise ConfigError("queue.redis_url", got="", allowed=allowed)
    try:
        redis_url_without_secrets(url)
        redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        raise ConfigError("queue.redis_url", got="an invalid URL", allowed=REDIS_URLS) from None
    return url


def address(url: str) -> str:
    """Return `host:port`, or the path of a Unix socket, for messages."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def client_options(section: QueueSection) -> dict[str, Any]:
    """Return the options of both clients. The client never retries: the caller waits and reconciles."""
    return {
        "password": section.redis_password.get_secret_value() if section.redis_password else None,
        "socket_timeout": _REPLY_SECONDS,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "protocol": 2,
        "decode_responses": False,
        **keepalive_options(section),
        **tls_options(section, name="queue"),
    }


def connect(section: QueueSection) -> redis.Redis:
    """Return a client that connects at its first command.

    Raises:
        ConfigError: as `check_url`.
    """
    return redis.Redis.from_url(check_url(section), retry=no_retry(), **client_options(section))


def keepalive_options(section: RedisSection) -> dict[str, bool]:
    """Return the TCP keepalive option of a client; a Unix socket has none."""
    return {} if urlsplit(section.redis_url).scheme == "unix" else {"socket_keepalive": True}


def tls_options(section: RedisSection, *, name: str) -> dict[str, Any]:
    """Return the TLS options of a client for a `rediss://` URL.

    Args:
        section: settings of the connection.
        name: name of the section, `queue` or `keys`, for messages.

    Raises:
        ConfigError: if a file does not exist, or a setting would be ignored because the URL has no TLS.
    """
    encrypted = urlsplit(section.redis_url).scheme == "rediss"
    files = {
        "redis_tls_ca": section.redis_tls_ca,
        "redis_tls_certificate": section.redis_tls_certificate,
        "redis_tls_key": section.redis_tls_key,
    }
    for field, path in files.items():
        if path and not encrypted:
            raise ConfigError(f"{name}.{field}", got=path, allowed="empty, or a rediss:// URL")
        if path and not Path(path).is_file():
            raise ConfigError(f"{name}.{field}", got=path, allowed="a PEM file")
    options = {
        "ssl_ca_certs": section.redis_tls_ca,
        "ssl_certfile": section.redis_tls_certificate,
        "ssl_keyfile": section.redis_tls_key,
    }
    found: dict[str, Any] = {option: path for option, path in options.items() if path}
    return found | {"ssl_check_hostname": True} if encrypted else found


def no_retry() -> Retry:
    """Return a policy without retries, for the synchronous client."""
    return Retry(NoBackoff(), 0)


@contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Translate errors of the Redis client to Fairlead's; `where` is the server's address."""
    try:
        yield
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise QueueMisconfigured(
            f"Redis at {where} rejects the credentials ({error}): "
            "set queue.redis_password (FAIRLEAD_QUEUE__REDIS_PASSWORD), and allow its user all stream, "
            "hash, string and scripting commands on fairlead:*"
        ) from None
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise QueueMisconfigured(
                f"the certificate of Redis at {where} is not trusted ({_first_line(error)}): "
                "set queue.redis_tls_ca"
            ) from None
        raise QueueUnavailable(
            f"Redis at {where} does not answer ({_first_line(error)}): "
            "check that it runs and that queue.redis_url is right"
        ) from error
    except redis.ResponseError as error:
        raise _from_reply(where, error) from error


def _from_reply(where: str, error: redis.ResponseError) -> Exception:
    text = _first_line(error)
    if "FENCED" in text:
        return Fenced(
            f"another trainer holds the fence of this run at {where} ({text}): this trainer must stop"
        )
    if isinstance(error, redis.exceptions.OutOfMemoryError) or "OOM" in text:
        return QueueUnavailable(f"Redis at {where} is full ({text}): raise its maxmemory")
    if isinstance(error, redis.exceptions.ReadOnlyError) or text.startswith(
        ("MISCONF", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "BUSY ", "UNBLOCKED", "LOADING")
    ):
        return QueueUnavailable(f"Redis at {where} does not accept writes now ({text})")
    if refusal := _misconfigured(where, error, text):
        return QueueMisconfigured(refusal)
    if "WRONGTYPE" in text:
        return CorruptData(f"Redis at {where} has a key of this run with another type ({text})")
    return error


def _misconfigured(where: str, error: redis.ResponseError, text: str) -> str:
    """Return what is wrong with the settings; empty if nothing is."""
    # `MovedError` is an `AskError`; its text is slot and address of the node that holds the key.
    if isinstance(error, redis.exceptions.AskError):
        return (
            f"Redis at {where} is a node of a cluster, and another node holds the keys of this run ({text}): "
            "set queue.redis_url to a single server, or to a cluster of one shard"
        )
    if "DB index is out of range" in text or "SELECT is not allowed" in text:
        return (
            f"Redis at {where} does not have the database of queue.redis_url ({text}): use a lower number, "
            "or 0 in a cluster"
        )
    if "NOPERM" in text or "NOAUTH" in text:
        return (
            f"Redis at {where} rejects the credentials ({text}): "
            "set queue.redis_password, or grant its user access"
        )
    return ""


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def check_server(info: Mapping[str, object], config: Mapping[str, object], *, where: str) -> None:
    """Reject a server that would lose work, and log what its durability settings mean.

    Args:
        info: reply to INFO.
        config: reply to CONFIG GET appendfsync; empty if the server does not allow it, as in managed Redis.
        where: address of the server.

    Raises:
        QueueMisconfigured: if the server is too old, or evicts keys when it is full.
    """
    if "sentinel" in (info.get("redis_mode"), info.get("server_mode")):  # of Redis, of Valkey
        raise QueueMisconfigured(
            f"Redis at {where} is a Sentinel, which holds no data: set queue.redis_url to the server that it "
            "names (`SENTINEL get-master-addr-by-name`), or to a proxy that follows it"
        )
    version = str(info.get("redis_version", "0"))
    if int(version.partition(".")[0]) < _OLDEST_MAJOR_VERSION:
        raise QueueMisconfigured(f"Redis at {where} is version {version}: use Redis 7 or newer, or Valkey")
    policy = info.get("maxmemory_policy")
    if policy != "noeviction":
        raise QueueMisconfigured(
            f"Redis at {where} has maxmemory-policy {policy}, which deletes tasks when it is full: "
            "set it to noeviction (`CONFIG SET maxmemory-policy noeviction`, and in the server's file)"
        )
    appendfsync = str(config.get("appendfsync") or "")
    if not int(str(info.get("aof_enabled", 0))):
        durability = "has no append-only file: a restart goes back to the last snapshot; set appendonly yes"
    elif not appendfsync:
        durability = "has an append-only file; its appendfsync setting cannot be read"
    else:
        durability = f"has appendfsync {appendfsync}: {_APPENDFSYNC.get(appendfsync, 'unknown')}"
    logger.info("Redis %s at %s %s", info.get("valkey_version", version), where, durability)
