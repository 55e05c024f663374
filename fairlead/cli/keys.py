"""`fairlead keys`: create, list and revoke API keys in a file that services read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import Json, fail, print_in_full, say, with_examples

if TYPE_CHECKING:
    from fairlead.rpc.api_keys import ApiKey, KeyFile

_CREATE = with_examples(
    "Create a key and print it. It is shown only once.\n\n"
    "The file gets the key's SHA-256 and permissions; services that read the file accept the key from the "
    "next request on. Without limits, only the service's own limits apply.",
    "fairlead keys create search --scope score --requests-per-second 20",
    "fairlead keys create nightly --scope score --max-priority bulk --tokens-per-day 50000000",
    "fairlead keys create worker --scope score --scope generate --file secrets/keys.json",
)
_LIST = with_examples("Show the keys of a file, without their hashes.", "fairlead keys list")
_REVOKE = with_examples(
    "Revoke a key. Its entry stays in the file, so that its id is not reused.",
    "fairlead keys revoke search",
)

_File = Annotated[Path, typer.Option("--file", metavar="FILE", help="File of keys, as in `[keys] file`.")]
_DEFAULT = Path("keys.json")


class Scope(StrEnum):
    """The permissions of a key."""

    SCORE = "score"
    GENERATE = "generate"
    WEIGHTS = "weights"
    ADMIN = "admin"


class KeyPriority(StrEnum):
    """The highest priority of a key's requests."""

    ONLINE = "online"
    BULK = "bulk"


def register(app: typer.Typer) -> None:
    """Add the group of verbs."""
    group = typer.Typer(no_args_is_help=True, help="Manage API keys: a file of hashes that services read.")
    group.command("create", help=_CREATE)(create)
    group.command("list", help=_LIST)(list_keys)
    group.command("revoke", help=_REVOKE)(revoke)
    app.add_typer(group, name="keys")


def create(  # noqa: PLR0913, PLR0917 - a flag each
    key_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Id of the key in logs; random if not given.")
    ] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option("--scope", help="A permission; repeatable. [default: score]")
    ] = None,
    requests_per_second: Annotated[
        float | None, typer.Option("--requests-per-second", help="Average requests per second.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option("--tokens-per-minute", help="Average tokens per minute.")
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option("--tokens-per-day", help="Tokens per day (UTC).")
    ] = None,
    max_request_tokens: Annotated[
        int | None, typer.Option("--max-request-tokens", help="Maximum number of tokens in one request.")
    ] = None,
    max_in_flight: Annotated[
        int | None,
        typer.Option("--max-in-flight", help="Maximum number of concurrent requests on one replica."),
    ] = None,
    max_priority: Annotated[
        KeyPriority,
        typer.Option(
            "--max-priority", help="Highest priority; `bulk` requests are served after online ones."
        ),
    ] = KeyPriority.ONLINE,
    expires_days: Annotated[
        float | None, typer.Option("--expires-days", help="Days until the key expires.")
    ] = None,
    file: _File = _DEFAULT,
) -> None:
    """Create a key, store its hash and print the key."""
    from pydantic import ValidationError

    from fairlead.rpc import api_keys

    name = key_id or api_keys.new_id()
    key = api_keys.draw(name)
    expires = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    try:
        entry = api_keys.ApiKey(
            id=name,
            sha256=api_keys.sha256_of(key),
            scopes=api_keys.scopes_of([one.value for one in scope or [Scope.SCORE]]),
            requests_per_second=requests_per_second,
            tokens_per_minute=tokens_per_minute,
            tokens_per_day=tokens_per_day,
            max_request_tokens=max_request_tokens,
            max_in_flight=max_in_flight,
            max_priority=max_priority.value,
            expires=expires,
        )
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{first['loc'][0]}: got {first['input']!r}, allowed: {first['msg']}")
    with api_keys.editing(file):
        found = _read(file) if file.exists() else api_keys.KeyFile()
        if found.get(name) is not None:
            fail(f"ID: got {name!r}, an id that {file} already has, allowed: a new id")
        api_keys.write(file, found.replaced(entry))
    say(f"added key {name} to {file}; the key is shown only this once", err=True, dim=True)
    typer.echo(key)


def list_keys(file: _File = _DEFAULT, json_lines: Json = False) -> None:
    """Show every key."""
    keys = _read(file).keys
    if json_lines:
        typer.echo(json.dumps([key.model_dump(mode="json", exclude={"sha256"}) for key in keys], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "scopes", "limits", "state", box=None)
    for key in keys:
        table.add_row(key.id, " ".join(key.scopes), _limits(key), _state(key))
    print_in_full(Console(), table)


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")], file: _File = _DEFAULT
) -> None:
    """Mark a key as revoked."""
    from fairlead.rpc import api_keys

    with api_keys.editing(file):
        found = _read(file)
        key = found.get(key_id)
        if key is None:
            known = ", ".join(one.id for one in found.keys) or "none"
            fail(f"ID: got {key_id!r}, allowed: a key of {file} ({known})")
        api_keys.write(file, found.replaced(key.model_copy(update={"revoked": True})))
    say(f"key {key_id} is revoked", err=True)


def _read(file: Path) -> KeyFile:
    from fairlead.rpc import api_keys

    return api_keys.read(file)


def _limits(key: ApiKey) -> str:
    units = {
        "requests_per_second": "requests/s",
        "tokens_per_minute": "tokens/min",
        "tokens_per_day": "tokens/day",
        "max_request_tokens": "tokens/request",
        "max_in_flight": "in flight",
    }
    values = {unit: getattr(key, name) for name, unit in units.items()}
    found = [f"{value:,} {unit}" for unit, value in values.items() if value is not None]
    if key.max_priority == "bulk":
        found.append("bulk")
    return ", ".join(found) or "none"


def _state(key: ApiKey) -> str:
    if key.revoked:
        return "revoked"
    if key.expires is None:
        return "valid"
    state = "expired" if key.expires <= datetime.now(UTC) else "valid until"
    return f"{state} {key.expires:%Y-%m-%d %H:%M} UTC"
