"""What failed, why, what to do about it, and whether it is over."""
