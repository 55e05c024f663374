"""The audit of a run: rebuilds the history of every task from disk and Redis, and checks the invariants.

Trusts no counter and changes nothing: the journals say what happened, the checkpoints what was trained, Redis
what is in progress. It reads the files with its own code, not the trainer's, so that a bug in the trainer
does not hide here. The invariants are in docs/queue-protocol.md.
"""

from fairlead.audit.report import Report, audit

__all__ = ["Report", "audit"]
