"""Which files in a folder are taken for pictures, whoever reads it."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".jp2")
"""Endings of their names, in lower case."""
