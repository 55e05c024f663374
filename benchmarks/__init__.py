"""Measurements: ratios between things that run side by side in one run, never in timed tests."""
