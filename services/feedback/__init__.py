"""People in the loop: tasks for labelers, their judgments, and what is made of them."""
