"""Probes of what a model does that people should know of: refusals, toxicity, truth, sycophancy, bias.

Turns items into prompts and pairs, and answers and scores into figures with intervals and into a card. Knows
no service and no model; `fairlead evaluate` asks those. The items are in `items/`.
"""
