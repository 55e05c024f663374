"""Helpful and harmless: a small chat model learns from people's judgments of harm, and what that costs."""
