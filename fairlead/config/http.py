"""Sections of the services that speak HTTP: what all of them have, and the gateway's own keys."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fairlead.config.base import Section


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


def origin(text: str) -> str:
    """Check that a text is the origin of web pages.

    Raises:
        ValueError: it is not.
    """
    if not re.fullmatch(r"https?://[^/\s*?#@]+", text):
        raise ValueError("an origin without a path, such as https://tools.example.com")
    return text


def _origin_or_all(text: str) -> str:
    if text != "*" and not re.fullmatch(r"https?://[^/\s*?#@]+", text):
        raise ValueError("an origin without a path, such as https://tools.example.com, or *")
    return text


def _origin_or_none(text: str) -> str:
    return origin(text) if text else text


def _prefix(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", text):
        raise ValueError("a path such as /scoring, without a slash at its end")
    return text


class HttpSection(Section):
    """The address and the limits of a service that speaks HTTP."""

    replicas: int = Field(default=0, ge=0, le=64)
    """Processes that a run on one machine starts."""
    addresses: tuple[str, ...] = ("127.0.0.1:0",)
    """Addresses that callers connect to, `host:port`. On one machine, port 0 means any free port."""
    bind: str = ""
    """Address that a replica listens on. Empty: the first of `addresses`."""
    tls: Literal["full", "server", "off"] = "full"
    """How the service applies `[tls]` to its callers: `full` does so completely; `server` presents the
    certificate but requires none of callers; `off` serves plain HTTP, for a proxy in front of it that
    terminates TLS. Calls to other services always follow `[tls]`."""
    root_path: Annotated[str, AfterValidator(_prefix)] = Field(default="", max_length=200)
    """Path prefix under which a proxy publishes the service, such as `/scoring`, whether the proxy removes it
    from requests or not. Pages, such as /docs, need it."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Addresses or networks, such as `10.0.0.0/8`, of proxies whose `X-Forwarded-For` is believed: the log
    then has the address of the caller in place of the proxy's."""
    timeout_seconds: float = Field(default=120.0, gt=0, le=86_400)
    """Deadline of a request, including the time to read it. A caller may set a shorter one with
    `X-Request-Timeout`."""
    max_body_bytes: int = Field(default=16 << 20, ge=1 << 10, le=1 << 30)
    """Maximum size of a request body, in bytes."""
    max_in_flight: int = Field(default=1_024, ge=1, le=1_000_000)
    """Maximum number of requests in progress. Requests above it are refused with a retry delay."""
    keep_alive_seconds: float = Field(default=65.0, gt=0, le=3_600)
    """Time after which an idle connection is closed. It must be longer than that of the load balancer,
    usually 60 s."""


class GatewaySection(HttpSection):
    """The HTTP gateway of the services at `reward.addresses` and `policy.addresses`. An address with port 0
    means that the service does not exist.
    """

    origin: Annotated[str, AfterValidator(_origin_or_none)] = ""
    """Origin under which callers outside a cluster reach the gateway, such as `https://rewards.example.com`:
    the host of its Ingress or HTTPRoute. Has no effect on one machine."""
    cors_origins: tuple[Annotated[str, AfterValidator(_origin_or_all)], ...] = ()
    """Origins of web pages that may call the gateway from a browser (CORS), such as
    `https://tools.example.com`; `*` allows every page. Empty: none."""
    retry_attempts: int = Field(default=3, ge=1, le=100)
    """Maximum number of attempts of one call to a service within the deadline. With 1 the caller gets the
    refusal of a service at once; with more, the gateway waits as long as the service asks for."""
    drain_seconds: float | None = Field(default=None, ge=0, le=3_600)
    """Deprecated: overrides `server.drain_seconds` for the gateway."""
    chat_max_tokens: int = Field(default=1_024, ge=1, le=131_072)
    """Default for the maximum number of tokens of a response of /v1/chat/completions."""
    chat_log: str = ""
    """File to which every exchange of /v1/chat/completions is appended, as JSON lines that `fairlead score`
    and `data.prompts` can read. Empty: no log. Every replica needs its own file: `{pid}` is replaced by the
    process id."""
    chat_log_files: int = Field(default=10, ge=1, le=10_000)
    """Number of older files of the chat log to keep, `<file>.1`, `.2` and so on, of 64 MiB each."""
    collect: Literal["off", "asked", "notice"] = "off"
    """Which prompts of /v1/chat/completions go to the feedback service at `feedback.addresses`: none (`off`);
    those of requests with `store: true` (`asked`); those of all requests but the ones with `store: false`,
    because users were informed (`notice`). See docs/feedback.md."""
    collect_notice: str = Field(default="", max_length=100, pattern=r"^[!-~]*$")
    """Version of the notice that users have been given, such as `2026-11`; it is kept with each prompt.
    Required for `notice`."""
    collect_queue: int = Field(default=1_000, ge=1, le=100_000)
    """Exchanges that wait for the feedback service. Further ones are dropped and counted; no caller waits."""

    @model_validator(mode="after")
    def _check_collect(self) -> Self:
        if self.collect == "notice" and not self.collect_notice:
            raise ValueError('`collect = "notice"` needs `collect_notice`, the version of the notice')
        if self.collect == "off" and self.collect_notice:
            raise ValueError('`collect_notice` has no effect with `collect = "off"`: set `collect` too')
        return self
