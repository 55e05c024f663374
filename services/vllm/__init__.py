"""vLLM in a model service: what the policy, reward and reference services share."""
