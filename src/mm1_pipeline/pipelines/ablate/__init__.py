"""Pipeline `ablate`."""
