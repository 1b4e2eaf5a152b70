"""What an admin does to the deployment, each act with its audit entry: shared by the CLI and the HTTP routes."""
