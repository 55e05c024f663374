"""A file of API keys for tests of access control."""

from __future__ import annotations

from pathlib import Path

from fairlead.config.infrastructure import KeysSection
from fairlead.rpc import api_keys
from fairlead.rpc.api_keys import ApiKey, KeyFile


class Keys:
    """A file of keys that tests change."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        self.file = KeyFile()
        self.section = KeysSection(file=str(self.path))
        api_keys.write(self.path, self.file)

    def add(self, key_id: str, **fields) -> str:
        key = api_keys.draw(key_id)
        entry = ApiKey(id=key_id, sha256=api_keys.sha256_of(key), **{"scopes": ("score",), **fields})
        self.file = self.file.replaced(entry)
        api_keys.write(self.path, self.file)
        return key

    def revoke(self, key_id: str) -> None:
        key = self.file.get(key_id)
        assert key is not None
        self.file = self.file.replaced(key.model_copy(update={"revoked": True}))
        api_keys.write(self.path, self.file)
