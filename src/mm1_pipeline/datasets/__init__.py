"""Catalog entries: versioned artifact directories, and reports with their previews."""
