"""Parcellations: labels, spaces and where they come from."""
