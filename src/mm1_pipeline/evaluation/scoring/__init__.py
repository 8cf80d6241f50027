"""From answers to scores with their uncertainty."""
