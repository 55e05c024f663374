"""Seeded schedules of faults on the real processes of a run; every task must still count exactly once."""
