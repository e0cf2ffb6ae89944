"""The named optimizers: one per file, each a chain of links."""
