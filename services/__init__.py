"""The processes that serve a run; start one with `python -m services.<name>`."""
