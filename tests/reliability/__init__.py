"""What mtmeta promises of its reliability, each promise with a test that can fail; docs/reliability.md lists them."""
