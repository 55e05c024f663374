"""`[queue]`: prompts out, rollouts back, through Redis Streams."""

from __future__ import annotations

from pydantic import Field, SecretStr

from fairlead.config.section import Section


class QueueSection(Section):
    """Where the queue is and how patient it is."""

    redis_url: str = ""
    """`redis://` or `rediss://` URL. Empty: a run on one machine starts a Valkey of its own."""
    password: SecretStr | None = None
    """Password, kept out of the URL and of logs; best set by FAIRLEAD_QUEUE__PASSWORD."""
    tls_ca: str = ""
    """Authorities that are trusted for `rediss://`, as PEM. Empty: those of the system."""
    tls_certificate: str = ""
    """Certificate to show a server that asks for one, with its key in `tls_key`."""
    tls_key: str = ""
    """The certificate's private key."""
    lease_seconds: float = Field(default=3.0, ge=0.1, le=600)
    """A task whose worker did not renew its claim for so long goes to a peer."""
    max_failures: int = Field(default=3, ge=1, le=100)
    """Explicit failures of a task before it is dead-lettered."""
    max_deliveries: int = Field(default=50, ge=1, le=10_000)
    """Deliveries of one sending, leases that ran out included, before it is dead-lettered."""
    stall_seconds: float = Field(default=30.0, gt=0, le=86_400)
    """The trainer reconciles Redis with its ledger when nothing arrived for so long."""
    give_up_seconds: float = Field(default=600.0, gt=0, le=604_800)
    """The trainer stops, naming what it waits for, when nothing arrived for so long."""
