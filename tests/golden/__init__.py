"""Interrupted runs of earlier releases; later releases must be able to continue them."""
