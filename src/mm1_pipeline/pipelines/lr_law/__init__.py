"""Pipeline `lr_law`."""
