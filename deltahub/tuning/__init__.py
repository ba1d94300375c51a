"""Training tasks on a base: data, methods, and the loop."""
