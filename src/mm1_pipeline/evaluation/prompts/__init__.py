"""What a model is asked, with its shots and images."""
