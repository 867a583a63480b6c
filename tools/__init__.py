"""Tools that make what the package ships; not part of it. Run from a clone, as `python -m tools.build_mini`."""
