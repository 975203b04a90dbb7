"""Functional and structural connectomes on disk."""
