"""`[reference]`: the service of the frozen model."""

from __future__ import annotations

from fairlead.config.compute import BatchingSection, ModelServiceSection


class ReferenceSection(ModelServiceSection):
    """Log-probs under the frozen reference."""

    batching: BatchingSection = BatchingSection()
    """How requests are packed."""
    pack_weights: bool = True
    """On a CPU in float32: linear layers through oneDNN, their weights laid out for it when loaded."""
