"""Demonstrations, preferences and prompts: read, check, split."""
