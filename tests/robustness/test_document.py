"""docs/reliability.md names files that are there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.robustness.bad_inputs import beginnings
from tests.support.paths import ROOT


def test_the_commands_name_files_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    named = {path for line in commands for path in re.findall(r"(?:tests|benchmarks)/[\w./]+", line)}
    assert len(named) >= 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    ours = {path.name for path in Path(__file__).parent.glob("test_*.py")} - {Path(path).name for path in named}
    by_census = {begin.partition("::")[0] for begin in beginnings()}  # `python -m tests.robustness.bad_inputs`
    assert ours - by_census == {"test_bad_inputs.py", "test_cost.py", "test_document.py", "test_hostile_runs.py"}
