"""The laboratory: grids of whole training runs, and the files they are kept in."""
