"""The stages of training; start one with `python -m trainer.<stage>`."""
