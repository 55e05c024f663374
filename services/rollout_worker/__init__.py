"""The rollout worker: claims tasks, calls the model services and returns rollouts."""
