"""What the cluster's API answers when it does not do what it was asked, as errors of our own.

Knows the Status object of Kubernetes and the exceptions of its client; asks nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import urllib3

from fairlead.errors import ClusterRefused, DeadlineExceeded, FairleadError, Unavailable


class NotFound(ClusterRefused):
    """There is no such object, or no such kind."""


class Forbidden(ClusterRefused):
    """We may not."""


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
    kind = {403: Forbidden, 404: NotFound}.get(status, ClusterRefused)
    sentences = {
        0: f"the cluster at {host} has a certificate that the kubeconfig does not vouch for "
        f"({message.rpartition('] ')[2].splitlines()[-1] if message else 'TLS'})",
        401: f"the cluster at {host} does not know who we are (401): log in again, or take another --context",
        403: f"we may not {where}: {message}. Ask for a role that may",
        404: f"{where}: {message}",
    }
    return kind(sentences.get(status, f"{where}: the cluster refuses with {status}: {message}"))


def no_answer(error: Exception, what: str, *, host: str, seconds: float) -> FairleadError:
    """The error of our tree for a connection that failed, or gave no answer within `seconds`."""
    # A refused connection counts among the time-outs of urllib3.
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)
    if isinstance(error, urllib3.exceptions.TimeoutError) and not refused:
        return DeadlineExceeded(f"the cluster at {host} did not answer within {seconds:g} s ({what})")
    reason = str(getattr(error, "reason", None) or error).rpartition(": ")[2] or type(error).__name__
    return Unavailable(
        f"the cluster at {host} cannot be reached ({what}: {reason}): does it run, and is the context right?"
    )


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
