"""Generated certificates for tests: an authority, servers and clients, valid and invalid."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import trustme

from fairlead.config.base import TlsSection


class Authority:
    """An authority that writes certificates into a folder."""

    def __init__(self, folder: Path, name: str = "ours") -> None:
        self._folder = folder
        self._authority = trustme.CA(organization_name=name)
        self.ca = folder / f"ca-{name}.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *hosts: str, expired: bool = False) -> tuple[str, str]:
        """Write a certificate and its key and return their paths; files of the same name are replaced."""
        past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        times = {"not_before": past, "not_after": past + datetime.timedelta(days=1)} if expired else {}
        issued = self._authority.issue_cert(*(hosts or ("localhost", "127.0.0.1")), **times)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        for path, content in (
            (key, issued.private_key_pem.bytes()),
            (certificate, b"".join(blob.bytes() for blob in issued.cert_chain_pems)),
        ):
            aside = path.with_suffix(".new")
            aside.write_bytes(content)
            os.replace(aside, path)
        return str(certificate), str(key)

    def server(self, *hosts: str, mutual: bool = False, name: str = "server", **options) -> TlsSection:
        """Return the `[tls]` section of a server."""
        certificate, key = self.issue(name, *hosts, **options)
        return TlsSection(certificate=certificate, key=key, ca=str(self.ca), mutual=mutual)

    def client(self, *, name: str = "", **options) -> TlsSection:
        """Return the `[tls]` section of a client, with a certificate if a name is given."""
        if not name:
            return TlsSection(ca=str(self.ca), **options)
        certificate, key = self.issue(name, name)
        return TlsSection(certificate=certificate, key=key, ca=str(self.ca), **options)
