"""Training through Composer or a loop of our own; resumable, exact, loud when it fails."""
