"""Reruns exactly what a change touches, and says why; usable without the rest of the project."""
