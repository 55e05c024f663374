"""What benchmarks of learning share: the task of a quickstart, evaluation, finished runs as files."""
