"""What an answer names: from raw output to what is scored."""
