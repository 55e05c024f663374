"""Several ranks of one trainer: how they start, find one another, watch one another and share a model."""
