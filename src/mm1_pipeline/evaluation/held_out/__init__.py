"""Losses and retrieval on data that training left out."""
