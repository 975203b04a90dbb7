"""Damaged, absurd and malicious input files, and the readers that must survive them."""
