"""What is in production, what was, and what stands beside it."""
