"""Commands that make or adapt several models, one a file."""
