"""Built-in plugins. They enter by the same hooks as third-party ones and import only `mtmeta`'s public names."""
