"""The micro-batcher of the reward and reference services: batcher, queue with admission, packing."""
