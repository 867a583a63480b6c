"""docs/reliability.md names files that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_commands_name_files_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    named = {path for line in commands for path in re.findall(r"(?:tests|benchmarks)/[\w./]+", line)}
    assert len(named) >= 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    ours = {str(path.relative_to(ROOT)) for path in Path(__file__).parent.glob("test_*.py")}
    assert ours - named == {f"tests/reliability/{name}.py" for name in ("test_cost", "test_document")}
