"""One HTTP request: its connection, its size, its body, and what every route has in common."""
