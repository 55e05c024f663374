"""API keys: what one is, what it may do, and the file that holds the hashes of all.

Written by `fairlead keys`, read by the edge of every service. A key is `fl_<id>_<secret>`; the file holds its
SHA-256 and never the key. It knows no request and no clock but for what has expired.

A plain hash is enough: the secret has 256 random bits, so there is no dictionary to try (NIST SP 800-63B,
section 5.1.4, asks for a slow one only for what a person chose).
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

Scope = Literal["score", "generate", "feedback", "weights", "admin"]
SCOPES: tuple[Scope, ...] = ("score", "generate", "feedback", "weights", "admin")
"""score: rewards and reference log-probs; generate: the policy; feedback: rankings; weights: to fetch them;
admin: everything."""

_PREFIX = "fl"
_SECRET_BYTES = 32
_MAX_FILE_BYTES = 16 << 20


class ApiKey(Section):
    """One key: who it is, what it may do and how much."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    """Names the key in logs and in the key itself."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the whole key, in hexadecimal."""
    scopes: tuple[Scope, ...] = Field(min_length=1)
    """What it may do; `admin` may do everything."""
    requests_per_second: float | None = Field(default=None, gt=0)
    """Requests, on average; as many at once as a second allows, one at least. None: no limit."""
    tokens_per_minute: int | None = Field(default=None, gt=0)
    """Tokens, on average; as many at once as a minute allows. None: no limit."""
    tokens_per_day: int | None = Field(default=None, gt=0)
    """Tokens from one midnight (UTC) to the next. None: no limit."""
    max_request_tokens: int | None = Field(default=None, gt=0)
    """Tokens of one request. None: as many as the service takes."""
    max_in_flight: int | None = Field(default=None, gt=0)
    """Requests at the same time on one replica. None: no limit."""
    max_priority: Literal["online", "bulk"] = "online"
    """`bulk`: its requests are served after the online ones, whatever they ask for."""
    expires: AwareDatetime | None = None
    """From then on it is refused. None: never."""
    revoked: bool = False
    """Whether it is refused."""

    def allows(self, scope: Scope) -> bool:
        """Whether it may do this."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: Scope) -> None:
        """Checks that it may do this.

        Raises:
            PermissionDenied: if it may not.
        """
        if not self.allows(scope):
            raise PermissionDenied(f"the API key {self.id} has not the scope {scope}")

    def check_valid(self, *, now: datetime | None = None) -> None:
        """Checks that it is neither revoked nor out of date.

        Raises:
            Unauthenticated: if it is.
        """
        if self.revoked:
            raise Unauthenticated(f"the API key {self.id} is revoked")
        if self.expires is not None and self.expires <= (now or datetime.now(UTC)):
            raise Unauthenticated(f"the API key {self.id} has expired")


class KeyFile(Section):
    """Every key, as the file holds them."""

    keys: tuple[ApiKey, ...] = ()
    """In the order in which they were made."""

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        ids = [key.id for key in self.keys]
        twice = {one for one in ids if ids.count(one) > 1}
        if twice:
            raise ValueError(f"the id {min(twice)} stands there twice")
        return self

    def get(self, key_id: str) -> ApiKey | None:
        """The key of an id."""
        return next((key for key in self.keys if key.id == key_id), None)

    def replaced(self, key: ApiKey) -> KeyFile:
        """The same with a key in the place of the one that had its id, or behind all others."""
        others = tuple(key if one.id == key.id else one for one in self.keys)
        return KeyFile(keys=others if self.get(key.id) else (*others, key))


def draw(key_id: str) -> str:
    """A new key of an id: its secret has 256 random bits."""
    return f"{_PREFIX}_{key_id}_{secrets.token_hex(_SECRET_BYTES)}"


def new_id() -> str:
    """An id for who does not choose one."""
    return secrets.token_hex(4)


def id_of(key: str) -> str:
    """The id in a key; empty if the text is none."""
    parts = key.split("_")
    return parts[1] if len(parts) == 3 and parts[0] == _PREFIX else ""


def sha256_of(key: str) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def read(path: Path) -> KeyFile:
    """The file.

    Raises:
        InvalidInput: if it cannot be read or holds something else; says where, and quotes no hash.
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
        raise _bad(path, f"no JSON ({error})") from None


def write(path: Path, file: KeyFile) -> None:
    """Puts the file in the place of what is there, in one step, readable by its owner alone.

    Raises:
        OSError: if it cannot be written.
    """
    values = file.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    text = json.dumps({"keys": values.get("keys", [])}, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


@contextlib.contextmanager
def editing(folder: Path) -> Iterator[None]:
    """Keeps other writers of the files in a folder out, so that none undoes what another wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def scopes_of(names: Sequence[str]) -> tuple[Scope, ...]:
    """Scopes by name, in their own order.

    Raises:
        InvalidInput: for a name that is none.
    """
    for name in names:
        if name not in SCOPES:
            raise InvalidInput("scopes", got=name, allowed=f"some of {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in names)


def _bad(path: Path, got: str) -> InvalidInput:
    return InvalidInput(str(path), got=got, allowed="a file of keys as `fairlead keys create` writes it")
