"""Training of a policy on comparisons or thumbs, without a reward model."""
