"""What wraps or changes a running optimizer: parameter groups, `live`, `migrate`, and applying its updates."""
