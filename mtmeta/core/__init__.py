"""What every run shares. Import the public names from `mtmeta`, not from here."""
