"""The command line."""

from mtmeta.cli.application import app, main

__all__ = ["app", "main"]
