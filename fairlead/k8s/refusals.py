"""What the cluster's API answers when it does not do what it was asked, as errors of our own.

Knows the Status object of Kubernetes and the exceptions of its client; asks nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.errors import ClusterRefused, FairleadError, Unavailable


class NotFound(ClusterRefused):
    """There is no such object, or no such kind."""


class Immutable(ClusterRefused):
    """The change needs a new object."""


def refusal(error: Any, what: str, *, host: str, namespace: str) -> FairleadError:  # noqa: ANN401
    """The error of our tree that says the same.

    Args:
        error: the client's ApiException; its status is 0 if there was no answer because of TLS.
        what: what was asked, as a verb and an object.
        host: of the API.
        namespace: in which it was asked.
    """
    status, told = int(error.status or 0), _status_object(error.body)
    message = str(told.get("message") or error.reason or "").strip()
    where = f"{what} in namespace {namespace}"
    if status == 422 and "immutable" in message:
        return Immutable(f"{where}: {message}")
    if status == 429 or status >= 500:
        return Unavailable(f"the cluster at {host} cannot do it now ({where}: {status} {message})")
    if conflicts := _conflicts(told):
        return ClusterRefused(f"{where}: {'; '.join(conflicts)}. --force-conflicts takes these fields over")
    kind = NotFound if status == 404 else ClusterRefused
    sentences = {
        0: f"the cluster at {host} has a certificate that the kubeconfig does not vouch for "
        f"({message.rpartition('] ')[2].splitlines()[-1] if message else 'TLS'})",
        401: f"the cluster at {host} does not know who we are (401): log in again, or take another --context",
        403: f"we may not {where}: {message}. Ask for a role that may",
        404: f"{where}: {message}",
    }
    return kind(sentences.get(status, f"{where}: the cluster refuses with {status}: {message}"))


def plain(error: Exception) -> str:
    """The innermost reason of a failed connection, without the addresses of Python objects."""
    text = str(getattr(error, "reason", None) or error)
    return text.rpartition(": ")[2] or type(error).__name__


def _status_object(body: bytes | str | None) -> Mapping[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _conflicts(status: Mapping[str, Any]) -> Sequence[str]:
    """`conflict with "keda" using apps/v1: .spec.replicas`, one for each field that someone else owns."""
    causes = (status.get("details") or {}).get("causes") or ()
    return [
        f"{cause.get('message', 'conflict')}: {cause.get('field', '?')}"
        for cause in causes
        if cause.get("reason") == "FieldManagerConflict"
    ]
