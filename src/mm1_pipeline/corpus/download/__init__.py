"""Fetches images that lists on disk name, carefully towards this machine and towards others."""
