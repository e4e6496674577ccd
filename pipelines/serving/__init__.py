"""`bebygan serve`: an HTTP server in front of a registered model."""
