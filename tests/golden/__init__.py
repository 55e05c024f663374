"""A run that a trainer of an earlier release left behind in mid-work; later releases must go on from it."""
