"""Rebuilds every task's life from what a run left on disk and in Redis, and holds it against the protocol.

It trusts no counter and changes nothing: the journals say what happened, the checkpoints what is true, Redis
what is under way. Reads the files itself instead of through the trainer, so that a mistake there is not made
here again. The invariants stand in docs/queue-protocol.md.
"""

from fairlead.audit.report import Report, audit

__all__ = ["Report", "audit"]
