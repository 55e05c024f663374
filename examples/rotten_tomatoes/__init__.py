"""Rotten tomatoes: real sentences of film reviews, steered towards praise, judged by a third party."""
