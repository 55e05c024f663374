"""Names of a run's keys in Redis, and the Lua scripts that write them.

Used by both faces of the Redis queue. It knows where things are, not what they mean: that stands in the
scripts (`lua/*.lua`) and in docs/queue-protocol.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

GROUP = "workers"
"""The consumer group of the prompts stream."""
RETURNED = "returned"
"""Consumer that owns entries given back, until someone claims them."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one run. The run's name is a hash tag, so that a cluster keeps them in one slot."""

    run: str
    """Name of the run."""

    @property
    def prompts(self) -> str:
        """Stream of sendings, with the group `workers`."""
        return f"fairlead:{{{self.run}}}:prompts"

    @property
    def rollouts(self) -> str:
        """Stream of outcomes, without a group."""
        return f"fairlead:{{{self.run}}}:rollouts"

    @property
    def outstanding(self) -> str:
        """Hash: task → `<incarnation>:<number>:<failures>:<entry>` of its open sending."""
        return f"fairlead:{{{self.run}}}:outstanding"

    @property
    def fence(self) -> str:
        """String: `<incarnation>:<token>` of the trainer that may write."""
        return f"fairlead:{{{self.run}}}:fence"

    def all(self) -> tuple[str, str, str, str]:
        """In the order in which every script takes them."""
        return (self.prompts, self.rollouts, self.outstanding, self.fence)


@cache
def script(name: str) -> str:
    """Source of a script: its shebang, the shared prelude, its body."""
    folder = resources.files(__package__) / "lua"
    shebang, _, body = (folder / f"{name}.lua").read_text(encoding="utf-8").partition("\n")
    return f"{shebang}\n{(folder / 'prelude.lua').read_text(encoding='utf-8')}{body}"
