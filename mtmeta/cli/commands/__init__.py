"""One file a command; `new` has three."""
