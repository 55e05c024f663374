"""The reference service: log-probs under the frozen model."""
