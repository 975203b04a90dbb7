"""Lesion network mapping with Nipype."""

__version__ = "0.1.0.dev0"
