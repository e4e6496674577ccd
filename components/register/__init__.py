"""Put a challenger with a verdict into the model registry."""
