"""The version, in the one place where it is written down: the build reads this file as text."""

__version__ = "0.1.0"
