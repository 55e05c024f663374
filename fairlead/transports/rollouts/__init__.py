"""The queue between trainer and rollout workers: prompt tasks in one direction, outcomes in the other."""
