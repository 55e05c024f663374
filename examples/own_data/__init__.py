"""A run on your own data: small files, written by `make.py`, and the run.toml that trains on them."""
