"""What every layer may use: files, identities, processes, progress, numbers as text, devices."""
