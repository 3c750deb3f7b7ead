"""Scores: estimates, how they are found, and what is scored."""
