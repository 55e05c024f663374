"""The torch code that services and trainer share: log-probs, heads, loading."""
