"""The algebra of whole optimizers: what they consist of, chains, places, printing, `diff`, `ablations`."""
