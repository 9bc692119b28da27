"""Triton's side: configurations, repositories, models that it serves."""
