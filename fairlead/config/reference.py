"""`[reference]`: the service of the frozen model."""

from __future__ import annotations

from fairlead.config.compute import BatchingSection, ModelServiceSection


class ReferenceSection(ModelServiceSection):
    """Log-probs under the frozen reference."""

    batching: BatchingSection = BatchingSection()
    """How requests are packed."""
