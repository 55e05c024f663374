"""The transports that carry rollouts and weights between the parts."""
