"""An unfinished run of an earlier release, which later releases must resume."""
