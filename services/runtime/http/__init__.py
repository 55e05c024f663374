"""HTTP servers of the services: connection, body, errors, and what every request has in common."""
