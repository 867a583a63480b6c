"""Which files hold a word a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtmeta.core.tables.word_lines import HEAD, has_words_in_columns, has_words_with_tags

BIO = "# text = a b\nRome NNP B-LOC\nis VBZ O\n\nAnna NNP I-PER\n"
POS = "1\tthe\tDET\n2\tend\tNOUN\n\n1\tgo\tVERB\n"


@pytest.mark.parametrize(
    ("text", "tagged", "columns"),
    [
        (BIO, True, True),
        (BIO.replace(" ", "\t").replace("\n\n", "\n\t\n"), True, True),  # WNUT's lines between texts hold a tab
        (POS, False, True),
        (BIO.replace("\n\n", "\n"), False, False),  # one text, or a table without a header
        ("Rome O\nis O\n\nit O\n", False, False),  # no entity: a file of texts may end in this letter
        ("A joy from start to end\n\nTwo hours I will not get back\n", False, False),
        ("text\tlabel\na b\tc\n", False, False),
        ("a\tb\n\nc\n", False, False),
        ("", False, False),
    ],
)
def test_words_on_lines(text: str, tagged: bool, columns: bool, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text)
    assert (has_words_with_tags(path), has_words_in_columns(path)) == (tagged, columns)


def test_a_file_that_is_long_is_known_by_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(BIO + "x B-LOC\n" * HEAD)  # it is cut within a line
    assert has_words_with_tags(path)
    assert not has_words_with_tags(tmp_path / "none")
