"""Policies on common levels: courses, and populations that play together."""
