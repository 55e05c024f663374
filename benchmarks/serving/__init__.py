"""Reward servers side by side: real processes pinned to one core, their clients on another."""
