"""Who sends a request: a person with a session, a program with an API key, or anybody on this machine.

`Authentication.authorize` runs at the edge, before the body of a request is read; handlers get `Identity`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.types import Scope

from fairlead.errors import NotFound, PermissionDenied, Unauthenticated
from fairlead.rpc.api_keys import ApiKey
from services.feedback.routes import ADMIN, OPEN, SIGNED_IN, Need, need_of
from services.feedback.service import Service
from services.feedback.store.records import Person
from services.runtime.access.control import AccessControl, Caller
from services.runtime.http.call import HttpCall
from services.runtime.http.paths import path_of

NO_NAME = "choose a name first; programs do so with POST /v1/feedback/sessions"
NO_KEY = (
    "sign in, or send an API key: `authorization: Bearer fl_…`; "
    "commands of fairlead send that in FAIRLEAD_API_KEY"
)
"""Messages to callers who have neither a session nor a key."""

_KEY = "fairlead.identity"
_OF_PROXIES = (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip")


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller of a request."""

    person: Person | None = None
    """The person who acts."""
    key: ApiKey | None = None
    """The API key that was sent."""

    @property
    def name(self) -> str:
        """Who it is, for lists of accesses: a person's id, `key-` with the id of a key, or `local`."""
        if self.person is not None:
            return self.person.id
        return subject_of(self.key.id) if self.key is not None else "local"

    @property
    def worker(self) -> Person:
        """The person who acts; the table of routes guarantees that there is one where it says so."""
        if self.person is None:
            raise Unauthenticated("this request acts for a person: sign in first")
        return self.person


def subject_of(key_id: str) -> str:
    """Return the subject of the person to whom an API key belongs."""
    return f"key-{key_id}"


class Authentication:
    """Identifies callers and checks what they may do."""

    def __init__(self, service: Service, access: AccessControl, *, exists: Callable[[Scope], bool]) -> None:
        """
        Args:
            service: the store, and how people sign in.
            access: knows the API keys.
            exists: whether the app has a route for the path of a request.
        """
        self._service = service
        self._access = access
        self._exists = exists

    async def authorize(self, caller: Caller, call: HttpCall, scope: Scope) -> None:
        """Identify the caller of a request and check that the route is for them.

        Raises:
            Unauthenticated: nobody is signed in, or the session or the key is not valid.
            PermissionDenied: the route is for others.
        """
        if self._service.is_open:
            _refuse_proxies(scope)
        need = need_of(scope["method"], path_of(scope))
        if need is OPEN:
            self._access.authorize(caller, bearer=None, scope=None)
            scope[_KEY] = Identity()
            return
        if need == ADMIN and not self._exists(scope):
            # Everybody who is known may learn that a path does not exist.
            need = SIGNED_IN
        token = self._service.cookie.read(scope["headers"])
        if call.authorization is not None and self._access.requires_keys:
            scope[_KEY] = await self._of_key(caller, call.authorization, need)
        elif token is not None:
            self._access.authorize(caller, bearer=None, scope=None)
            scope[_KEY] = await self._of_session(token, need)
        elif self._service.is_open:
            self._access.authorize(caller, bearer=None, scope=None)
            if need.person:
                raise Unauthenticated(NO_NAME)
            scope[_KEY] = Identity()
        else:
            raise Unauthenticated(NO_KEY)

    async def _of_session(self, token: str, need: Need) -> Identity:
        person = await self._service.threads.run(self._service.store.people.of_session, token)
        if person.role not in need.roles:
            raise PermissionDenied(f"this is not for the role {person.role}")
        return Identity(person)

    async def _of_key(self, caller: Caller, bearer: str, need: Need) -> Identity:
        self._access.authorize(caller, bearer=bearer, scope="any")
        key = caller.key
        assert key is not None
        if "admin" not in key.scopes and not any(key.allows(one) for one in need.scopes):
            missing = " or ".join(sorted(need.scopes)) or "admin"
            raise PermissionDenied(f"the API key {key.id} does not have the scope {missing}")
        if not need.person:
            return Identity(None, key)
        try:
            people = self._service.store.people
            person = await self._service.threads.run(people.by_subject, subject_of(key.id))
        except NotFound:
            raise PermissionDenied(
                f"the API key {key.id} belongs to nobody here: a lead adds the program with POST "
                f'/v1/feedback/people and `"key": "{key.id}"`'
            ) from None
        if person.role not in need.roles:
            raise PermissionDenied(f"this is not for the role {person.role}")
        return Identity(person, key)


def _refuse_proxies(scope: Scope) -> None:
    """Check that a request comes from this machine itself.

    Raises:
        PermissionDenied: a proxy on this machine passes on requests of others.
    """
    if any(name in _OF_PROXIES for name, _ in scope["headers"]):
        raise PermissionDenied(
            "the request came through a proxy, and this server lets everybody who reaches it do everything: "
            "set feedback.origin to the address that the proxy publishes, so that people have to sign in"
        )


def _of_request(request: Request) -> Identity:
    found = request.scope[_KEY]
    assert isinstance(found, Identity)
    return found


CurrentIdentity = Annotated[Identity, Depends(_of_request)]
"""Type of a handler's parameter that receives the caller."""
