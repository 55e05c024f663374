"""Trains the toxicity classifier of `fairlead evaluate` on public data, and measures it."""
