"""Lesion masks in, derivatives out."""
