"""The reward model, from comparisons."""
