"""`[weights]`: the store of policy versions between trainer and policy replicas."""

from __future__ import annotations

from pydantic import Field

from fairlead.config.section import Section


class WeightsSection(Section):
    """Immutable, checksummed versions in a folder that both sides see."""

    path: str = ""
    """Folder of the store. Empty: `weights/` in the run's folder."""
    keep: int = Field(default=3, ge=2, le=1_000)
    """Newest versions kept."""
