"""A reward that is a function of the user instead of a model: `[reward] engine = "function"`."""
