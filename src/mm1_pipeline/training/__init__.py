"""Training through Composer, behind one module; resumable, exact, loud when it fails."""
