"""`fairlead keys`: makes, shows and revokes the API keys of a file that services read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import Json, fail, say, with_examples

if TYPE_CHECKING:
    from fairlead.rpc.api_keys import ApiKey, KeyFile

_CREATE = with_examples(
    "Make a key and print it, once.\n\n"
    "The file gets its SHA-256 and what it may do; services that read the file take it within a second. "
    "Without limits it may do as much as the service can.",
    "fairlead keys create search --scope score --requests-per-second 20",
    "fairlead keys create nightly --scope score --max-priority bulk --tokens-per-day 50000000",
    "fairlead keys create worker --scope score --scope generate --file secrets/keys.json",
)
_LIST = with_examples("Show the keys of a file, without their hashes.", "fairlead keys list")
_REVOKE = with_examples(
    "Refuse a key from now on; its line stays, so that its id is not used again.",
    "fairlead keys revoke search",
)

_File = Annotated[Path, typer.Option("--file", metavar="FILE", help="The file of keys, as in `[keys] file`.")]
_DEFAULT = Path("keys.json")


class Scope(StrEnum):
    """What a key may do."""

    SCORE = "score"
    GENERATE = "generate"
    FEEDBACK = "feedback"
    WEIGHTS = "weights"
    ADMIN = "admin"


class Priority(StrEnum):
    """Before or after whom its requests are served."""

    ONLINE = "online"
    BULK = "bulk"


def register(app: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(no_args_is_help=True, help="API keys: a file of hashes that services read.")
    group.command("create", help=_CREATE)(create)
    group.command("list", help=_LIST)(list_keys)
    group.command("revoke", help=_REVOKE)(revoke)
    app.add_typer(group, name="keys")


def create(  # noqa: PLR0913, PLR0917 - a flag each
    key_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Names the key in logs; drawn if not given.")
    ] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option("--scope", help="What it may do; may be repeated. [default: score]")
    ] = None,
    requests_per_second: Annotated[
        float | None, typer.Option("--requests-per-second", help="Requests a second, on average.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option("--tokens-per-minute", help="Tokens a minute, on average.")
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option("--tokens-per-day", help="Tokens of one day (UTC).")
    ] = None,
    max_request_tokens: Annotated[
        int | None, typer.Option("--max-request-tokens", help="Tokens of one request.")
    ] = None,
    max_in_flight: Annotated[
        int | None, typer.Option("--max-in-flight", help="Requests at the same time on one replica.")
    ] = None,
    max_priority: Annotated[
        Priority, typer.Option("--max-priority", help="`bulk`: served after the online requests.")
    ] = Priority.ONLINE,
    expires_days: Annotated[
        float | None, typer.Option("--expires-days", help="Refused after so many days.")
    ] = None,
    file: _File = _DEFAULT,
) -> None:
    """Draws a key, keeps its hash, prints it."""
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
    with api_keys.editing(file.parent):
        found = _read(file) if file.exists() else api_keys.KeyFile()
        if found.get(name) is not None:
            fail(f"ID: got {name!r}, which {file} has already, allowed: an id of its own")
        api_keys.write(file, found.replaced(entry))
    say(f"key {name} is in {file}; this is the only time that it is shown", err=True, dim=True)
    typer.echo(key)


def list_keys(file: _File = _DEFAULT, json_lines: Json = False) -> None:
    """Shows every key."""
    keys = _read(file).keys
    if json_lines:
        typer.echo(json.dumps([key.model_dump(mode="json", exclude={"sha256"}) for key in keys], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "scopes", "limits", "state", box=None)
    for key in keys:
        table.add_row(key.id, " ".join(key.scopes), _limits(key), _state(key))
    Console().print(table)


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")], file: _File = _DEFAULT
) -> None:
    """Marks a key as revoked."""
    from fairlead.rpc import api_keys

    with api_keys.editing(file.parent):
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
        "max_in_flight": "at once",
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
    word = "expired" if key.expires <= datetime.now(UTC) else "valid until"
    return f"{word} {key.expires:%Y-%m-%d %H:%M} UTC"
