"""The groups of the system, as a test needs them."""

from __future__ import annotations

import grp
import os
import pwd
from types import SimpleNamespace

import pytest


def set_group(patch: pytest.MonkeyPatch, *members: str, name: str = "ada", first: int | None = None) -> None:
    """Have the user be ada, and the group of all her files be `name` with these members; `first` is her first group."""
    group = os.getgid()
    user = SimpleNamespace(pw_name="ada", pw_gid=group if first is None else first)
    patch.setattr(pwd, "getpwuid", lambda number: user)
    patch.setattr(grp, "getgrgid", lambda number: SimpleNamespace(gr_name=name, gr_mem=list(members)))
