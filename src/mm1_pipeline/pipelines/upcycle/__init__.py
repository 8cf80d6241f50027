"""Stage `upcycle`."""
