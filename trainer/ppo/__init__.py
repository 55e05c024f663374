"""Reinforcement learning: dispatch, admit, compute advantages, update, publish."""
