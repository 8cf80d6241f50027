"""A second caption for the images of caption sources, from alt text and visual concepts."""
