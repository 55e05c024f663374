"""`[tls]`: the certificate of a process, whom it trusts, and whether its callers must show one of theirs."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from fairlead.config.section import Section


class TlsSection(Section):
    """One identity for everything that a process serves and calls. Files are PEM and read again when they
    change, so that certificates are renewed without a restart. Empty: plain text.
    """

    enabled: bool = False
    """Speak TLS although nothing below is set: a client of servers whose authority the system trusts."""
    certificate: str = ""
    """The process's certificate and those between it and its authority. A server needs one; a client shows it
    where servers ask for it."""
    key: str = ""
    """The certificate's private key, without a passphrase."""
    ca: str = ""
    """Authorities that are trusted: by clients for servers, and by servers for clients. Empty: clients trust
    those that gRPC brings."""
    mutual: bool = False
    """Servers ask callers for a certificate that one of `ca` has signed (mTLS); health is no exception."""
    server_name: str = ""
    """The name that clients expect in servers' certificates. Empty: that of the address called."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("`certificate` and `key` only together")
        if self.mutual and not (self.certificate and self.ca):
            raise ValueError("`mutual` needs `certificate`, `key` and `ca`")
        return self

    @property
    def on(self) -> bool:
        """Whether the process speaks TLS."""
        return self.enabled or bool(self.certificate or self.ca)
