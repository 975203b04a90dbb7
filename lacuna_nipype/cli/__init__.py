"""Command line: arguments and environment stop here."""
