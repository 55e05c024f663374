"""The configuration of a run: its sections, `RunConfig` with all of them, and `load` to read it."""

from fairlead.config.folder import RunFolder
from fairlead.config.run import RunConfig, load, parse_overrides

__all__ = ["RunConfig", "RunFolder", "load", "parse_overrides"]
