"""What stands behind the ports: PostgreSQL, HTTP, the broker, clocks, secrets."""
