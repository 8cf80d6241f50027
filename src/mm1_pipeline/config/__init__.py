"""Typed parameters of every stage: frozen, checked, free of torch and Kedro."""
