"""The headline: a small tuned model is preferred to a 100 times larger one that was only pretrained."""
