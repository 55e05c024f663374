"""The rollout worker: claims tasks, calls the model services, hands back rollouts."""
