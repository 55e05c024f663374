"""`[keys]`: API keys of callers, and where their allowances are counted."""

from __future__ import annotations

from pydantic import Field, SecretStr

from fairlead.config.section import Section


class KeysSection(Section):
    """Who may call the services. Without a file anybody may, as is right on a machine of one's own."""

    file: str = ""
    """File of keys as `fairlead keys` writes it, or a mounted Secret; read again when it changes. Empty: no
    keys are asked for."""
    redis_url: str = ""
    """Redis that counts rates and quotas for all replicas together. Empty: every process counts alone."""
    redis_password: SecretStr | None = None
    """Its password, kept out of the URL and of logs; best set by FAIRLEAD_KEYS__REDIS_PASSWORD."""
    redis_tls_ca: str = ""
    """Authorities that are trusted for `rediss://`, as PEM. Empty: those of the system."""
    redis_tls_certificate: str = ""
    """Certificate to show a server that asks for one, with its key in `redis_tls_key`."""
    redis_tls_key: str = ""
    """The certificate's private key."""
    reload_seconds: float = Field(default=1.0, ge=0, le=3_600)
    """The file is looked at for changes at most this often."""
    allow_insecure: bool = False
    """Processes of this run show their key, FAIRLEAD_API_KEY, to other machines in plain text, too. Only on a
    network that you trust; with `[tls]` it is not needed."""
