"""Labels of the objects of a run, and the selector that finds them.

A namespace has one run without a prefix, whose selectors name no instance, and any number of runs with one.
Objects of the latter have another value of `part-of`, so that the immutable selectors of the former
never match them.
"""

from __future__ import annotations

PART_OF = "app.kubernetes.io/part-of"
COMPONENT = "app.kubernetes.io/component"
NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
"""Label with the name of the run."""
WITHOUT_PREFIX = "fairlead"
"""Value of `PART_OF` in the manifests, and of a run without a prefix."""
WITH_PREFIX = "fairlead-runs"
"""Value of `PART_OF` of runs with a prefix."""
FETCH = "fetch"
"""Value of `COMPONENT` of the Job that downloads a model, which no manifest of a run has."""


def selector(run: str) -> str:
    """Return the label selector of the objects of a run; `run` is empty for that without a prefix."""
    if not run:
        return f"{PART_OF}={WITHOUT_PREFIX}"
    return f"{PART_OF}={WITH_PREFIX},{INSTANCE}={run}"


def of_runs() -> str:
    """Return the label selector of the objects of every run with a prefix."""
    return f"{PART_OF}={WITH_PREFIX}"
