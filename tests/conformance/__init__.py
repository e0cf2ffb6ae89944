"""linkax against other implementations, on fixed streams of gradients.

A training loop feeds every rounding difference back into the next gradient; a fixed stream does not, so equality to
the last digits can be asked for.
"""
