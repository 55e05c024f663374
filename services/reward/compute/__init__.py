"""How a batch of sequences becomes scores: forward passes, packing, prefixes that answers share."""
