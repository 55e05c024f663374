"""A blocking client of the feedback service: tasks in, judgments out, for programs that label or follow.

Needs no package beyond the light part's. Knows the HTTP API (docs/feedback.md), no store and no models.
"""

from __future__ import annotations

from fairlead.feedback_client.client import FeedbackClient, Receipt, Task

__all__ = ["FeedbackClient", "Receipt", "Task"]
