"""Readers of data sets and the two small sets that come with the package (see README.md beside this file)."""
