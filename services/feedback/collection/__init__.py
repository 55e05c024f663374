"""What happens to a prompt of the deployed policy before it is stored: masking, and marks of its likeness."""
