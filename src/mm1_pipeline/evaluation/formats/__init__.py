"""Official benchmark files as items: one reader a format, nothing downloaded."""
