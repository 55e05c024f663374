"""API keys: their format, scopes and limits, and the file with the hashes of all keys.

Written by `fairlead keys`, read by the edge of every service. A key is `fl_<id>_<secret>`; the file contains
its SHA-256, never the key. Knows nothing about requests; uses the clock only for expiry.

A fast hash is enough: the secret has 256 random bits, so that no dictionary attack is possible (NIST SP
800-63B, section 5.1.4, requires a slow hash only for secrets chosen by people).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from fairlead.config.base import Section
from fairlead.errors import InvalidInput, PermissionDenied, Unauthenticated

Scope = Literal["score", "generate", "weights", "feedback", "collect", "curate", "admin"]
SCOPES: tuple[Scope, ...] = ("score", "generate", "weights", "feedback", "collect", "curate", "admin")
"""score: rewards and reference log-probs; generate: completions; weights: fetching weights; feedback: tasks
and judgments of one labeler; collect: handing in exchanges; curate: tasks, figures and exports of the
feedback service; admin: everything."""

_PREFIX = "fl"
_SECRET_BYTES = 32
_MAX_FILE_BYTES = 16 << 20


class ApiKey(Section):
    """One key: its id, scopes and limits."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    """Identifies the key in logs; part of the key itself."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the whole key, hexadecimal."""
    scopes: tuple[Scope, ...] = Field(min_length=1)
    """What the key allows; `admin` allows everything."""
    requests_per_second: float | None = Field(default=None, gt=0)
    """Mean rate of requests; bursts of one second's requests, at least one, are allowed. None: no limit."""
    tokens_per_minute: int | None = Field(default=None, gt=0)
    """Mean rate of tokens; bursts of one minute's tokens are allowed. None: no limit."""
    tokens_per_day: int | None = Field(default=None, gt=0)
    """Tokens in a day (UTC). None: no limit."""
    max_request_tokens: int | None = Field(default=None, gt=0)
    """Largest number of tokens of one request. None: the limit of the service."""
    max_in_flight: int | None = Field(default=None, gt=0)
    """Largest number of requests in progress on one replica. None: no limit."""
    max_priority: Literal["online", "bulk"] = "online"
    """`bulk`: requests are served after online ones, even if they ask for `online`."""
    expires: AwareDatetime | None = None
    """Time from which the key is refused. None: never."""
    revoked: bool = False
    """Whether the key is refused."""

    def allows(self, scope: Scope) -> bool:
        """Return whether the key has a scope."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: Scope) -> None:
        """Check that the key has a scope.

        Raises:
            PermissionDenied: if it does not.
        """
        if not self.allows(scope):
            raise PermissionDenied(f"the API key {self.id} does not have the scope {scope}")

    def check_valid(self, *, now: datetime | None = None) -> None:
        """Check that the key is neither revoked nor expired.

        Raises:
            Unauthenticated: if it is.
        """
        if self.revoked:
            raise Unauthenticated(f"the API key {self.id} is revoked")
        if self.expires is not None and self.expires <= (now or datetime.now(UTC)):
            raise Unauthenticated(f"the API key {self.id} has expired")


class KeyFile(Section):
    """The contents of the key file."""

    keys: tuple[ApiKey, ...] = ()
    """Keys in the order of their creation."""

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        ids = [key.id for key in self.keys]
        twice = {one for one in ids if ids.count(one) > 1}
        if twice:
            raise ValueError(f"the id {min(twice)} occurs twice")
        return self

    def get(self, key_id: str) -> ApiKey | None:
        """Return the key with an id; None if there is none."""
        return next((key for key in self.keys if key.id == key_id), None)

    def replaced(self, key: ApiKey) -> KeyFile:
        """Return the file with a key in place of the one with the same id, or appended."""
        others = tuple(key if one.id == key.id else one for one in self.keys)
        return KeyFile(keys=others if self.get(key.id) else (*others, key))


def draw(key_id: str) -> str:
    """Return a new key with an id and a secret of 256 random bits."""
    return f"{_PREFIX}_{key_id}_{secrets.token_hex(_SECRET_BYTES)}"


def new_id() -> str:
    """Return a random id."""
    return secrets.token_hex(4)


def id_of(key: str) -> str:
    """Return the id in a key; empty if the text is not a key."""
    parts = key.split("_")
    return parts[1] if len(parts) == 3 and parts[0] == _PREFIX else ""


def sha256_of(key: str) -> str:
    """Return the hash of a key, as in the file."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def read(path: Path) -> KeyFile:
    """Return the contents of the key file.

    Raises:
        InvalidInput: if it cannot be read or is invalid; says where, and quotes no hash.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise _bad(path, f"more than {_MAX_FILE_BYTES} bytes")
        return KeyFile.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise _bad(path, error.strerror or "an unreadable file") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise _bad(path, f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise _bad(path, f"invalid JSON ({error})") from None


def write(path: Path, file: KeyFile) -> None:
    """Replace the key file atomically; only its owner can read it. A link stays one: its target is replaced.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(os.path.realpath(path))
    values = file.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    text = json.dumps({"keys": values.get("keys", [])}, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def editing(path: Path) -> Iterator[None]:
    """Lock the folder of a key file against other writers, so that no change is lost."""
    folder = Path(os.path.realpath(path)).parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def scopes_of(names: Sequence[str]) -> tuple[Scope, ...]:
    """Return scopes by name, in the order of SCOPES.

    Raises:
        InvalidInput: for an unknown name.
    """
    for name in names:
        if name not in SCOPES:
            raise InvalidInput("scopes", got=name, allowed=f"some of {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in names)


def _bad(path: Path, got: str) -> InvalidInput:
    return InvalidInput(str(path), got=got, allowed="a key file as `fairlead keys create` writes it")
