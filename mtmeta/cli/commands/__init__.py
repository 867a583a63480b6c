"""The commands, one a file; `new` is a folder."""
