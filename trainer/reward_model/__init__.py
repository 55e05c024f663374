"""Training of the reward model on comparisons."""
