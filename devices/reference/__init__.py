"""Whole devices in one file each, made to be copied: they import nothing of this package, and nothing here imports
them."""
