"""The queue: prompt tasks out, outcomes back."""
