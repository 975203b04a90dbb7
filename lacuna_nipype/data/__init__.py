"""Specifications shipped with the package."""
