"""The reward service: one scalar for a response to a prompt."""
