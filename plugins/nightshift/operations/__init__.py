"""The page for the person on call."""
