"""What carries rollouts and weights between the parts."""
