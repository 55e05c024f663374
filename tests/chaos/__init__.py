"""Faults on the real processes of a run, by a seeded schedule: whatever is hit, every task counts once."""
