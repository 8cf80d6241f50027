"""What stands between this project's model and transformers.

These modules, and the model's own that they import, are copied into an exported directory
(`export.code`), so they import nothing but torch, numpy, Pillow and transformers.
"""
