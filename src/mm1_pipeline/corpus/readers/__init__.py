"""One module for each raw format."""
