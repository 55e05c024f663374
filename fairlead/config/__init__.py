"""A run's configuration: one file per section, `RunConfig` over all, `load` to read it."""

from fairlead.config.folder import RunFolder
from fairlead.config.run import RunConfig, load, parse_overrides

__all__ = ["RunConfig", "RunFolder", "load", "parse_overrides"]
