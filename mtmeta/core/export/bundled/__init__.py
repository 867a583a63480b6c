"""What `mtmeta export` puts into a folder as it stands; mtmeta itself never runs it."""
