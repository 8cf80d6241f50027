"""Tasks without images."""
