"""The tree of errors, and its one map to gRPC and HTTP statuses.

Every part raises these; only the outermost edge of a process turns them into a status or an exit code.

    FairleadError
    ├── InvalidInput                a mistake of the caller: field, index, value received, values allowed
    │   ├── ConfigError             in a configuration file, the environment or a flag
    │   ├── DataError               in a data file; names the file and the line
    │   └── RemoteInvalidInput      reported by a server
    ├── Transient                   may pass without a change of the request: worth a retry
    │   ├── Overloaded              at capacity; carries the delay before a retry
    │   ├── Unavailable             loading, draining or unreachable
    │   │   ├── QueueUnavailable    Redis does not answer
    │   │   └── ReplicaLost         a replica died, or its connection broke, during a call
    │   ├── StaleWeights            the replica does not have the requested weights yet
    │   └── DeadlineExceeded        out of time
    ├── Unauthenticated             missing or wrong credentials
    ├── PermissionDenied            valid credentials that do not allow this
    ├── NotFound                    no such model or version
    ├── NotOffered                  a method of a protocol that this server does not implement
    ├── ModelLoadError              a model cannot be loaded; says why
    ├── QueueMisconfigured          Redis would lose work, for example by evicting keys
    ├── OutOfMemory                 training does not fit; names the settings to lower
    ├── OutOfSpace                  the disk is full
    ├── ReadOnlyDisk                a folder is not writable
    ├── Fenced                      a newer incarnation of the trainer has taken over
    ├── SchemaTooNew                an entry was written by a newer version of fairlead
    ├── CorruptData                 a checksum or a structure is wrong
    │   ├── CorruptWeights
    │   ├── CorruptCheckpoint
    │   └── CorruptOutcome          an entry of the queue cannot be decoded; carries its id
    ├── Stalled                     waited too long; names what for, and how long
    ├── StoppedByGuard              reward hacking was detected; names the checkpoint that was restored
    ├── ProcessFailed               a process of a local run failed for good
    ├── ClusterRefused              the Kubernetes API refused a request; names the object and what to do
    └── InternalError               a bug; carries the id of its log entry
"""

from __future__ import annotations

import re

import grpc


class FairleadError(Exception):
    """Root of the tree."""


class InvalidInput(FairleadError):
    """A caller's mistake. Nothing of the request was done."""

    def __init__(self, field: str, *, got: object, allowed: str, index: int | None = None) -> None:
        self.field = field
        self.got = got
        self.allowed = allowed
        self.index = index
        super().__init__(f"{self.where}: got {_shortened(got)}, allowed: {allowed}")

    @property
    def where(self) -> str:
        """Field and index, without what was got: fit for a log."""
        return self.field if self.index is None else f"{self.field}[{self.index}]"


class ConfigError(InvalidInput):
    """A mistake in a run's configuration."""


class DataError(InvalidInput):
    """A bad line of a data file."""

    def __init__(self, file: str, line: int, *, got: object, allowed: str) -> None:
        self.file = file
        self.line = line
        super().__init__(f"{file}:{line}", got=got, allowed=allowed)


class RemoteInvalidInput(InvalidInput):
    """A caller's mistake as a server told it; the sentence is the server's own."""

    def __init__(self, message: str) -> None:
        FairleadError.__init__(self, message)
        told = re.fullmatch(r"(.*?)(?:\[(\d+)\])?: got (.*), allowed: (.*)", message, re.DOTALL)
        self.field, index, self.got, self.allowed = told.groups() if told else ("", None, "", message)
        self.index = None if index is None else int(index)


class Transient(FairleadError):
    """An error that may pass without a change of the request, so that a retry can succeed."""


class Overloaded(Transient):
    """No room now; try again after the delay."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"{message}; try again in {retry_after_seconds:g} s")


class Unavailable(Transient):
    """Loading, draining or unreachable."""


class QueueUnavailable(Unavailable):
    """Redis does not answer."""


class ReplicaLost(Unavailable):
    """A replica died, or its connection broke, while it worked on a call."""


class StaleWeights(Transient):
    """The replica does not hold weights as new as asked for."""


class DeadlineExceeded(Transient):
    """Out of time; the work was not started or was dropped."""


class Unauthenticated(FairleadError):
    """No or wrong credentials."""


class PermissionDenied(FairleadError):
    """The credentials are known and do not allow this."""


class NotFound(FairleadError):
    """No such model or version here; says what there is."""


class NotOffered(FairleadError):
    """A part of a protocol that this server does not offer; says what to do instead."""


class ModelLoadError(FairleadError):
    """A model cannot be loaded; says which, why and what to do."""


class QueueMisconfigured(FairleadError):
    """The Redis is set up so that it would lose work."""


class OutOfMemory(FairleadError):
    """Training needs more memory than there is; names the settings to lower."""


class OutOfSpace(FairleadError):
    """The disk is full; nothing that was there is lost."""


class ReadOnlyDisk(FairleadError):
    """A folder cannot be written into; nothing that was there is lost."""


class Fenced(FairleadError):
    """A newer incarnation of the trainer has taken over; this one must stop."""


class SchemaTooNew(FairleadError):
    """An entry was written by a newer version of fairlead."""


class CorruptData(FairleadError):
    """A checksum or structure does not hold."""


class CorruptWeights(CorruptData):
    """A weight version that is damaged or incomplete."""


class CorruptCheckpoint(CorruptData):
    """A checkpoint that is damaged or incomplete."""


class CorruptOutcome(CorruptData):
    """An outcome that cannot be decoded. Deleting its entry lets reconciliation send the task again."""

    def __init__(self, entry_id: str, reason: str) -> None:
        self.entry_id = entry_id
        super().__init__(f"outcome entry {entry_id}: {reason}")


class Stalled(FairleadError):
    """Nothing moved for too long; names what was waited for."""


class StoppedByGuard(FairleadError):
    """A signal of reward hacking ended PPO, which went back to its last good checkpoint."""


class ProcessFailed(FairleadError):
    """A process of a local run ended and is not started again."""


class ClusterRefused(FairleadError):
    """The Kubernetes API refuses what it was asked; asking again changes nothing."""


class InternalError(FairleadError):
    """A bug on the other side; the id stands in its log."""


def _shortened(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


# Looked up along the class's own order of resolution, so the nearest ancestor decides.
GRPC_STATUS: dict[type[BaseException], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    StaleWeights: grpc.StatusCode.FAILED_PRECONDITION,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    NotOffered: grpc.StatusCode.UNIMPLEMENTED,
}

HTTP_STATUS: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.INTERNAL: 500,
}


def grpc_status(error: BaseException) -> grpc.StatusCode:
    """The status of an error: that of its nearest ancestor in the map, INTERNAL for anything else."""
    for ancestor in type(error).__mro__:
        if ancestor in GRPC_STATUS:
            return GRPC_STATUS[ancestor]
    return grpc.StatusCode.INTERNAL


def http_status(error: BaseException) -> int:
    """The HTTP status that says the same as `grpc_status`."""
    return HTTP_STATUS.get(grpc_status(error), 500)


EXIT_CODE: dict[type[BaseException], int] = {
    InvalidInput: 2,
    ModelLoadError: 2,
    QueueMisconfigured: 2,
    SchemaTooNew: 2,
    OutOfMemory: 2,
    ClusterRefused: 2,
    Fenced: 3,
    Stalled: 4,
    StoppedByGuard: 5,
}
"""What the end of a process tells its supervisor: 2 do not restart, 3 a newer trainer runs, 4 stalled,
5 stopped by a guard, not to be started again."""


def exit_code(error: BaseException) -> int:
    """The exit code of an error: that of its nearest ancestor in the map, 1 for anything else."""
    return next((EXIT_CODE[ancestor] for ancestor in type(error).__mro__ if ancestor in EXIT_CODE), 1)


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this project, for errors about missing packages.

    The name on PyPI is `fairlead-rlhf`: `fairlead` there belongs to another project.
    """
    return f"pip install 'fairlead-rlhf[{extra}]'"
