"""Reward servers for comparison: real processes pinned to one core, their clients on another."""
