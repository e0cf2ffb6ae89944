"""The algebra of whole optimizers: their structure, chains, places, printing, `diff`, `ablations`."""
