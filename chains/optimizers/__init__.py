"""The named optimizers: one a file, each one chain of links."""
