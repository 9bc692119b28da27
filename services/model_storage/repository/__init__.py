"""Versions on a disk or in a bucket, as Triton reads them."""
