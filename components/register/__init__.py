"""Register a challenger with its verdict in the model registry."""
