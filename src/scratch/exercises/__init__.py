"""Checkers for the exercises: they say what is wrong in words."""
