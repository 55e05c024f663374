"""What services and trainer share of torch: log-probs, heads, loading."""
