"""A run on files of one's own: small ones, made by `make.py`, and the run.toml that learns from them."""
