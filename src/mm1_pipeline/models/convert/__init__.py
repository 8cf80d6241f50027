"""Weights of other programs' formats into this project's models; nothing in a file is run."""
