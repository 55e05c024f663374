"""Benchmarks: ratios between things measured side by side in one run; tests are never timed."""
