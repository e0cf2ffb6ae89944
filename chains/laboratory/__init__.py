"""The laboratory: grids of whole training runs, and the files that hold their results."""
