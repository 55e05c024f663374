"""Rotten tomatoes: make continuations of real film reviews positive, evaluated by an independent judge."""
