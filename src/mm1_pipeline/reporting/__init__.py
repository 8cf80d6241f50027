"""Shows a run: one self-contained HTML page, and figures for previews."""
