"""Answers and likelihoods out of a model."""
