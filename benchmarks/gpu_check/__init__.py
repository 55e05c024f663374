"""What a GPU has to show, in one command: `python -m benchmarks.gpu_check`; see docs/benchmarks.md."""
