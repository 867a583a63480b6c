"""`python -m mtmeta`: the same as the command `mtmeta`."""

from mtmeta.cli import main

if __name__ == "__main__":
    main()
