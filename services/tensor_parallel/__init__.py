"""Models of the reward and reference services that several processes hold together, one for each GPU."""
