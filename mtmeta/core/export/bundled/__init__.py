"""Modules that `mtmeta export` puts into a folder as they stand; mtmeta itself never runs them."""
