"""Sums with a checkable answer: SFT on answers of which most are wrong, then RL with a reward function."""
