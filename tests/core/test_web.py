"""Where a server may redirect to, and which hosts are this machine."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.environment import why_unsafe
from mtmeta.core.web import Misanswer, is_own_machine, redirected
from tests.support.groups import set_group


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://hub.co/a/b", "/c?x=1", "https://hub.co/c?x=1"),
        ("https://hub.co/a/b", "c", "https://hub.co/a/c"),
        ("https://hub.co/a", "//cdn.co/f", "https://cdn.co/f"),
        ("http://127.0.0.1:1/a", "http://localhost:2/f", "http://localhost:2/f"),
        ("http://mirror/a", "https://cdn.co/f", "https://cdn.co/f"),
        ("https://hub.co/a", "https://10.0.0.5/f", "https://10.0.0.5/f"),  # a mirror in a company's own network
    ],
)
def test_where_a_redirect_may_go(url: str, location: str, target: str) -> None:
    assert redirected(url, location) == target


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://hub.co/f", "from https to http"),
        ("http://cdn.co/f", "from https to http"),
        ("file:///etc/passwd", "no address"),
        ("ftp://cdn.co/f", "no address"),
        ("javascript:alert(1)", "no address"),
        ("https://:80/f", "no address"),
        ("https://[::1", "no address"),
        ("https://cdn.co:99999/f", "no address"),
        ("https://cdn.co/a b", "no address"),
        ("https://cdn.co/" + "a" * 9000, "no address"),
        ("https://me:secret@cdn.co/f", "holds a user name"),
        ("https://localhost/f", "on this machine"),
        ("https://a.localhost./f", "on this machine"),
        ("https://127.1/f", "on this machine"),
        ("https://0x7f000001/f", "on this machine"),
        ("https://0/f", "on this machine"),
        ("https://[::1]/f", "on this machine"),
        ("https://[::ffff:127.0.0.1]/f", "on this machine"),
        ("https://[fe80::1]/f", "on this machine"),
        ("https://169.254.169.254/latest", "on this machine"),
    ],
)
def test_where_none_may_go(location: str, words: str) -> None:
    with pytest.raises(Misanswer, match=words):
        redirected("https://hub.co/a", location)


def test_other_hosts_are_other_machines() -> None:
    for host in ("hub.co", "localhost.co", "10.0.0.5", "192.168.1.1", "8.8.8.8", "2001:db8::1", "127.0.0.1.co", ""):
        assert not is_own_machine(host), host


def test_what_others_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the sticky bit, as /tmp, keeps what is in it from others; a file has no such bit."""
    set_group(monkeypatch, "ada", "grace")
    file = tmp_path / "f"
    file.touch()
    for place, modes in (
        (tmp_path, {0o700: True, 0o755: True, 0o775: False, 0o777: False, 0o1777: True}),
        (file, {0o600: True, 0o644: True, 0o664: False, 0o646: False, 0o1666: False}),
    ):
        for mode, safe in modes.items():
            status: list[Any] = list(place.stat())
            status[stat.ST_MODE] = stat.S_IFMT(status[stat.ST_MODE]) | mode
            assert (why_unsafe(os.stat_result(status)) == "") is safe, (place, oct(mode))
    status[stat.ST_MODE] = stat.S_IFREG | 0o600
    for user, text in ((0, ""), (os.getuid(), ""), (12345, "belongs to another user (12345)")):
        status[stat.ST_UID] = user
        assert why_unsafe(os.stat_result(status)) == text
