"""Which callers each route is for. A route that is not listed here is for administrators.

People have a role, programs an API key with scopes. Knows nothing about sessions or handlers; a test compares
this table with the routes of the app.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.rpc.api_keys import Scope

API = "/v1/feedback"
"""Prefix of the paths of the API."""


@dataclass(frozen=True, slots=True)
class Need:
    """Who may use a route."""

    roles: frozenset[str] = frozenset()
    """Roles of people."""
    scopes: frozenset[Scope] = frozenset()
    """Scopes of API keys, of which one is enough; `admin` always is."""
    person: bool = False
    """Whether the route acts for a person: a program needs one that its key belongs to."""


_PEOPLE = frozenset({"labeler", "reviewer", "lead", "auditor"})
_WORKERS = _PEOPLE - {"auditor"}

OPEN = None
"""Everybody, without signing in."""
ADMIN = Need()
"""API keys with the scope `admin`, and programs on the machine itself where no sign-in is needed."""
SIGNED_IN = Need(_PEOPLE, frozenset({"feedback", "collect", "curate"}))
"""Everybody who is known."""
OWN = Need(_PEOPLE, frozenset({"feedback"}), person=True)
"""Everybody, about themselves."""
WORK = Need(_WORKERS, frozenset({"feedback"}), person=True)
"""Those who work on tasks."""
COLLECT = Need(scopes=frozenset({"collect"}))
"""Programs that hand in what the policy was asked, and read nothing."""
SCREEN = Need(frozenset({"reviewer", "lead"}), frozenset({"curate"}))
"""Those who decide what labelers may see."""
REVIEW = Need(frozenset({"reviewer", "lead"}), frozenset({"feedback"}), person=True)
"""Those who decide about tasks."""
LEAD = Need(frozenset({"lead"}), frozenset({"curate"}))
"""Those who run a project."""
ERASE = Need(frozenset({"lead"}))
"""Leads themselves, and administrators: no program of a project erases anything."""
AUDIT = Need(frozenset({"lead", "auditor"}), frozenset({"curate"}))
"""Those who check what happened."""
OWN_PAGE = Need(_PEOPLE, person=True)
"""People, about themselves."""
WORK_PAGE = Need(_WORKERS, person=True)
"""People who work on tasks."""
REVIEW_PAGE = Need(frozenset({"reviewer", "lead"}), person=True)
"""People who decide about tasks."""
LEAD_PAGE = Need(frozenset({"lead"}), person=True)
"""People who run a project."""
AUDIT_PAGE = Need(frozenset({"lead", "auditor"}), person=True)
"""People who check what happened."""

ROUTES: Mapping[tuple[str, str], Need | None] = {
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/metrics"): ADMIN,
    ("GET", "/docs"): OPEN,
    ("GET", "/docs/oauth2-redirect"): OPEN,
    ("GET", "/docs/files/{path}"): OPEN,
    ("GET", "/openapi.json"): OPEN,
    ("POST", f"{API}/sessions"): OPEN,
    ("DELETE", f"{API}/sessions/current"): OPEN,
    ("GET", f"{API}/me"): OWN,
    ("GET", f"{API}/projects"): SIGNED_IN,
    ("POST", f"{API}/projects"): LEAD,
    ("GET", f"{API}/projects/{{project}}"): SIGNED_IN,
    ("PATCH", f"{API}/projects/{{project}}"): LEAD,
    ("GET", f"{API}/projects/{{project}}/guidelines"): SIGNED_IN,
    ("POST", f"{API}/projects/{{project}}/guidelines"): LEAD,
    ("GET", f"{API}/people"): LEAD,
    ("POST", f"{API}/people"): LEAD,
    ("PATCH", f"{API}/people/{{person}}"): LEAD,
    ("POST", f"{API}/people/{{person}}/invitation"): LEAD,
    ("DELETE", f"{API}/people/{{person}}/sessions"): LEAD,
    ("POST", f"{API}/exchanges"): COLLECT,
    ("POST", f"{API}/prompts"): LEAD,
    ("GET", f"{API}/prompts"): SCREEN,
    ("PATCH", f"{API}/prompts/{{prompt}}"): SCREEN,
    ("GET", f"{API}/collected"): LEAD,
    ("GET", f"{API}/figures/collection"): LEAD,
    ("POST", f"{API}/tasks"): LEAD,
    ("POST", f"{API}/imports/argilla"): LEAD,
    ("POST", f"{API}/imports/label-studio"): LEAD,
    ("GET", f"{API}/tasks"): LEAD,
    ("GET", f"{API}/tasks/{{task}}"): LEAD,
    ("PATCH", f"{API}/tasks/{{task}}"): LEAD,
    ("POST", f"{API}/tasks/{{task}}/adjudication"): REVIEW,
    ("POST", f"{API}/next"): WORK,
    ("POST", f"{API}/assignments"): WORK,
    ("POST", f"{API}/judgments"): WORK,
    ("GET", f"{API}/assignments/{{assignment}}"): WORK,
    ("PUT", f"{API}/assignments/{{assignment}}/lease"): WORK,
    ("PUT", f"{API}/assignments/{{assignment}}/draft"): WORK,
    ("POST", f"{API}/assignments/{{assignment}}/judgment"): WORK,
    ("POST", f"{API}/assignments/{{assignment}}/skip"): WORK,
    ("POST", f"{API}/judgments/{{judgment}}/revision"): WORK,
    ("POST", f"{API}/judgments/{{judgment}}/withdrawal"): WORK,
    ("GET", f"{API}/judgments"): LEAD,
    ("GET", f"{API}/figures/progress"): LEAD,
    ("GET", f"{API}/figures/agreement"): LEAD,
    ("GET", f"{API}/figures/labelers"): LEAD,
    ("GET", f"{API}/figures/judges"): LEAD,
    ("GET", f"{API}/figures/bias"): LEAD,
    ("GET", f"{API}/snapshots"): LEAD,
    ("POST", f"{API}/snapshots"): LEAD,
    ("GET", f"{API}/snapshots/{{name}}"): LEAD,
    ("POST", f"{API}/snapshots/{{name}}/folder"): LEAD,
    ("POST", f"{API}/artifacts"): LEAD,
    ("GET", f"{API}/artifacts"): LEAD,
    ("GET", f"{API}/artifacts/{{artifact}}"): LEAD,
    ("PUT", f"{API}/rounds/{{name}}/{{number}}"): LEAD,
    ("GET", f"{API}/rounds"): LEAD,
    ("GET", f"{API}/reach/{{kind}}/{{name}}"): LEAD,
    ("POST", f"{API}/forget"): ERASE,
    ("GET", f"{API}/forget"): AUDIT,
    ("GET", f"{API}/forget/{{erasure}}"): AUDIT,
    ("GET", f"{API}/log"): AUDIT,
    ("GET", f"{API}/log/verification"): AUDIT,
    ("GET", f"{API}/accesses"): AUDIT,
    ("GET", "/static/{name}"): OPEN,
    ("GET", "/about"): OPEN,
    ("GET", "/sign-in"): OPEN,
    ("POST", "/sign-in"): OPEN,
    ("POST", "/sign-out"): OPEN,
    ("GET", "/invitation"): OPEN,
    ("POST", "/invitation"): OPEN,
    ("GET", "/"): OWN_PAGE,
    ("GET", "/projects/{project}/mine"): OWN_PAGE,
    ("GET", "/projects/{project}/guidelines"): OWN_PAGE,
    ("POST", "/projects/{project}/guidelines/{version}/reading"): OWN_PAGE,
    ("POST", "/projects/{project}/guidelines"): LEAD_PAGE,
    ("GET", "/projects/{project}/quiz"): OWN_PAGE,
    ("POST", "/projects/{project}/quiz"): OWN_PAGE,
    ("POST", "/projects/{project}/next"): WORK_PAGE,
    ("GET", "/assignments/{assignment}"): WORK_PAGE,
    ("POST", "/assignments/{assignment}"): WORK_PAGE,
    ("POST", "/assignments/{assignment}/skip"): WORK_PAGE,
    ("GET", "/assignments/{assignment}/comparison"): WORK_PAGE,
    ("GET", "/assignments/{assignment}/comparison.json"): WORK_PAGE,
    ("GET", "/judgments/{judgment}"): WORK_PAGE,
    ("POST", "/judgments/{judgment}"): WORK_PAGE,
    ("POST", "/judgments/{judgment}/withdrawal"): WORK_PAGE,
    ("GET", "/projects/{project}/overview"): LEAD_PAGE,
    ("GET", "/projects/{project}/agreement"): LEAD_PAGE,
    ("GET", "/projects/{project}/labelers"): LEAD_PAGE,
    ("GET", "/projects/{project}/bias"): LEAD_PAGE,
    ("GET", "/projects/{project}/disagreements"): REVIEW_PAGE,
    ("GET", "/projects/{project}/tasks"): LEAD_PAGE,
    ("POST", "/projects/{project}/tasks"): LEAD_PAGE,
    ("GET", "/tasks/{task}"): REVIEW_PAGE,
    ("POST", "/tasks/{task}"): REVIEW_PAGE,
    ("POST", "/tasks/{task}/reviewed"): REVIEW_PAGE,
    ("POST", "/tasks/{task}/change"): LEAD_PAGE,
    ("GET", "/projects/{project}/exports"): LEAD_PAGE,
    ("POST", "/projects/{project}/exports"): LEAD_PAGE,
    ("POST", "/projects/{project}/labelers/{person}/release"): LEAD_PAGE,
    ("GET", "/projects/{project}/rounds"): LEAD_PAGE,
    ("GET", "/projects/{project}/judges"): LEAD_PAGE,
    ("POST", "/projects/{project}/exports/{digest}"): LEAD_PAGE,
    ("GET", "/forget"): LEAD_PAGE,
    ("GET", "/forget/{kind}/{name}"): LEAD_PAGE,
    ("POST", "/forget/{kind}/{name}"): LEAD_PAGE,
    ("GET", "/prompts"): REVIEW_PAGE,
    ("POST", "/prompts/{prompt}"): REVIEW_PAGE,
    ("GET", "/people"): LEAD_PAGE,
    ("POST", "/people"): LEAD_PAGE,
    ("POST", "/people/{person}"): LEAD_PAGE,
    ("POST", "/people/{person}/invitation"): LEAD_PAGE,
    ("POST", "/people/{person}/sessions"): LEAD_PAGE,
    ("GET", "/audit"): AUDIT_PAGE,
}
"""What a route needs, by method and path; a name in braces is one part of a path, `{path}` the rest of it."""


def _pattern(template: str) -> str:
    parts = re.split(r"(\{\w+\})", template)
    return "".join(
        ".+" if part == "{path}" else "[^/]+" if part.startswith("{") else re.escape(part) for part in parts
    )


_FOR_PROGRAMS = re.compile(r"/(v1|docs|openapi\.json|metrics|healthz|readyz)(/|$)")


def is_page(path: str) -> bool:
    """Return whether a path is one of the pages, whose errors are pages too."""
    return _FOR_PROGRAMS.match(path) is None


_MATCHED = tuple(
    (re.compile(_pattern(template)), template) for template in dict.fromkeys(path for _, path in ROUTES)
)


def template_of(path: str) -> str | None:
    """Return the listed path that a path of a request matches; None if there is none."""
    if path in _PATHS:
        return path
    return next((template for pattern, template in _MATCHED if pattern.fullmatch(path)), None)


_PATHS = frozenset(path for _, path in ROUTES if "{" not in path)


def need_of(method: str, path: str) -> Need | None:
    """Return what a request needs. Methods that a path does not have need what an unknown path needs."""
    template = template_of(path)
    return ROUTES.get(("GET" if method == "HEAD" else method, template or ""), ADMIN)
