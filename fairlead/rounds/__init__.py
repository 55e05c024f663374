"""The loop of InstructGPT in rounds: sample, rank, reward model, PPO, evaluate, and again.

`loop` has the steps of a round; who ranks is a parameter, `labelers`.
"""
