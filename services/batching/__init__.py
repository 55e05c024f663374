"""The micro-batcher of the reward and reference services: queue, admission, packing, isolation."""
