"""What wraps, changes or places a running optimizer: groups, `live`, `migrate`, shardings, applying its updates."""
