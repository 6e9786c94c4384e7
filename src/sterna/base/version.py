"""Sterna's version, for every floor to read; `pyproject.toml` says the same, and a test compares."""

__version__ = "0.1.0"
