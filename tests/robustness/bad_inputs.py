"""The 75 bad inputs: which tests hold each of them, and which concern more than one machine.

    python -m tests.robustness.bad_inputs            runs them all and counts the rows whose every test passes
    python -m tests.robustness.bad_inputs --collect  only looks whether every row has tests

A test is named by the beginning of its id, so that one entry can stand for all cases of a row.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.support.paths import ROOT

RECIPES, DATA, WEIGHTS = "test_bad_recipes.py::test_", "test_bad_data.py::test_", "test_bad_weights.py::test_"
RUNS, PLUGINS, HOSTILE = "test_bad_runs.py::test_", "test_plugins.py::test_", "test_hostile_plugins.py::test_"
THIRD, FILES = "test_third_party.py::test_", "test_hostile_files.py::test_"

# row -> what it is, and the beginnings of the ids of its tests
ROWS: dict[int, tuple[str, ...]] = {
    1: ("recipe file missing", f"{RECIPES}command_line[1]"),
    2: ("a directory, or not readable", f"{RECIPES}command_line[2"),
    3: ("empty file", f"{RECIPES}recipe[3-"),
    4: ("top level is a list", f"{RECIPES}recipe[4-"),
    5: ("YAML syntax, tab", f"{RECIPES}recipe[5-"),
    6: ("duplicate key", f"{RECIPES}recipe[6-"),
    7: ("unknown key", f"{RECIPES}recipe[7-"),
    8: ("lr: 1e-5 and 1e-5x", f"{RECIPES}recipe[8-", f"{RECIPES}numbers_as_people_write_them"),
    9: ("shuffle: no", f"{RECIPES}recipe[9-"),
    10: ("learning rate not positive or not finite", f"{RECIPES}recipe[10-"),
    11: ("steps: 1.5, steps: 10_000_000_000", f"{RECIPES}recipe[11-"),
    12: ("alias, anchor, merge key", f"{RECIPES}recipe[12-", f"{FILES}recipe[billion laughs]"),
    13: ("!!python tag", f"{RECIPES}recipe[13-", f"{FILES}recipe[object]"),
    14: ("larger than 1 MiB, deeper than 32", f"{RECIPES}recipe[14-", f"{FILES}recipe[deep"),
    15: ("not UTF-8, NUL, UTF-16", f"{RECIPES}recipe[15-"),
    16: ("two YAML documents", f"{RECIPES}recipe[16-"),
    17: ("unknown algorithm", f"{RECIPES}recipe[17-"),
    18: ("no tasks, a task twice, names not allowed", f"{RECIPES}recipe[18-"),
    19: ("more tasks a step than there are", f"{RECIPES}recipe[19-"),
    20: ("support and query larger than the task", f"{RUNS}more_examples_than_there_are"),
    21: ("max_length beyond the positions", f"{RECIPES}recipe[21-", f"{WEIGHTS}texts_longer_than_the_positions"),
    23: ("recipe of a newer mtmeta", f"{RECIPES}recipe[23-"),
    24: ("data path missing", f"{DATA}data[24-"),
    25: ("empty data file, header only", f"{DATA}data[25-"),
    26: ("column missing", f"{DATA}data[26-", f"{FILES}data[column]"),
    27: ("ragged row", f"{DATA}data[27-"),
    28: ("stray quote", f"{DATA}data[28-"),
    29: ("field over the limit", f"{DATA}data[29-"),
    30: ("NUL, bad UTF-8, lone surrogate", f"{DATA}data[30-", f"{DATA}data[36-x.jsonl:7: "),
    31: ("unknown label", f"{DATA}data[31-", f"{FILES}data[label]"),
    32: ("label not a finite number", f"{DATA}data[32-"),
    33: ("one class alone", f"{DATA}data[33-"),
    34: ("dev overlaps train", f"{DATA}overlap_is_a_warning"),
    35: ("gz and zip pretending", f"{DATA}data[35-"),
    36: ("JSONL with NaN, duplicate keys, deep nesting", f"{DATA}data[36-"),
    37: ("data changed since the run began", f"{RUNS}changed_data"),
    38: ("no checkpoint", f"{RUNS}damaged_run[38-"),
    39: ("truncated or zero-filled tensors", f"{RUNS}damaged_run[39-", f"{WEIGHTS}weights[39-",
         "test_resume.py::test_a_damaged_newest_checkpoint"),
    40: ("a bit flipped", "test_resume.py::test_a_damaged_newest_checkpoint", "test_fuzz.py::test_fuzz[manifest-40]"),
    41: ("manifest missing or garbled", f"{RUNS}damaged_run[41-", f"{RUNS}damaged_run_in_a_process_of_its_own",
         "test_checkpoint.py::test_every_changed_byte_of_a_manifest_is_noticed"),
    42: ("checkpoint of another recipe", f"{RUNS}another_recipe_in_the_run_directory"),
    43: ("tensors missing or misshapen", f"{WEIGHTS}weights[43-", "test_resume.py::test_a_checkpoint_of_another_model"),
    44: ("NaN in weights", f"{WEIGHTS}weights[44-"),
    45: ("pickle", f"{WEIGHTS}weights[45-", f"{FILES}weights[pickle]", f"{FILES}a_pickle_beside_good_weights"),
    46: ("config.json: unknown type, remote code, huge", f"{WEIGHTS}weights[46-", f"{FILES}weights[auto_map]",
         f"{FILES}weights[layers]"),
    47: ("tokenizer larger than the embedding", f"{WEIGHTS}weights[47-", f"{FILES}weights[last id]"),
    48: ("tokenizer.json crafted", f"{WEIGHTS}weights[48-", f"{FILES}weights[panic]"),
    49: ("weights other than those of the lock", f"{WEIGHTS}other_weights_than_the_run_began_with"),
    50: ("other threads, device, torch", "test_resume.py::test_another_machine_is_refused_by_name"),
    51: ("two processes, one run directory", "test_lock.py::test_a_second_process_is_told_who_holds"),
    52: ("output directory that is no run", f"{RUNS}output_that_is_no_run"),
    53: ("plugin: import fails", f"{HOSTILE}every_command_goes_on", f"{HOSTILE}check_names_each"),
    54: ("plugin: exits or hangs", f"{HOSTILE}every_command_goes_on", f"{PLUGINS}a_slow_import_is_named"),
    55: ("plugin: hook signature", f"{HOSTILE}every_command_goes_on", f"{PLUGINS}broken_with_its_reason"),
    56: ("two plugins of one name", f"{THIRD}two_plugins_of_one_name", f"{PLUGINS}conflicts",
         f"{HOSTILE}every_command_goes_on"),
    57: ("plugin: raises, NaN loss, wrong shape", f"{HOSTILE}one_line_names_the_plugin",
         f"{THIRD}a_part_that_raises_is_named", f"{THIRD}a_loss_that_becomes_nan"),
    58: ("plugin: other API version", f"{PLUGINS}broken_with_its_reason[mtmeta_api"),
    59: ("plugin allowed but not installed", f"{THIRD}a_plugin_that_is_not_there"),
    60: ("unknown command or option", f"{RECIPES}command_line[60"),
    61: ("bad override", f"{RECIPES}override["),
    62: ("stdout closed", f"{RECIPES}a_reader_that_has_enough"),
    63: ("no such CUDA device", f"{RUNS}no_such_device"),
    64: ("out of memory", "test_divergence.py::test_memory_that_runs_out_in_a_step"),
    65: ("disk full", "test_checkpoint.py::test_a_checkpoint_that_will_not_fit_is_not_begun"),
    66: ("read-only, quota, EIO", "test_checkpoint.py::test_a_failing_disk_leaves_the_newest_checkpoint",
         "test_lock.py::test_a_directory_that_cannot_be_written"),
    67: ("offline and not cached", f"{WEIGHTS}weights_that_are_nowhere[no/such",
         "test_fetch.py::test_without_a_network_one_line_names_all_that_is_missing"),
    68: ("hub: gated, 401, 404", "test_hub.py::test_a_hub_that_refuses", "test_fetch.py::test_what_the_hub_has_not["),
    69: ("half of torchrun's variables", "test_environment.py::test_half_of_a_launcher",
         "test_environment.py::test_a_launcher_of_several"),
    71: ("old torch, missing package or extra", "test_environment.py::test_an_old_torch",
         "test_environment.py::test_a_package_that_is_gone", "test_report.py::test_without_matplotlib"),
    72: ("loss not finite", "test_divergence.py::test_it_stops_before_anything_bad_is_saved",
         "test_divergence.py::test_the_command_ends_with_7"),
    73: ("SIGTERM", "test_signals.py::test_the_step_is_ended_and_saved", "test_signals.py::test_a_process_of_its_own"),
    74: ("Ctrl-C", "test_signals.py::test_the_step_is_ended_and_saved",
         "test_signals.py::test_a_second_interrupt_stops_at_once"),
    75: ("C locale, no terminal, NO_COLOR", f"{RUNS}plain_surroundings"),
}  # fmt: skip
LEFT_OUT = {
    22: "a run has one worker, so an inner state that is carried from one task to the next cannot conflict with more",
    70: "a run has one process, so there are no ranks that could disagree",
}
PARTLY = {
    35: "archives are refused as a whole, so no member of one is ever looked at",
    49: "there is no --locked; a run pins its weights by SHA-256, which is what the test changes",
    69: "a port that is busy and a peer that is lost need several processes",
}


@dataclass
class Census:
    """A pytest plugin: leaves out the tests of no row, and notes how the others ended."""

    collect_only: bool
    ended: dict[str, str] = field(default_factory=dict)

    @pytest.hookimpl(trylast=True)  # after pytest has left out the slow ones
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wanted = [item for item in items if any(short(item.nodeid).startswith(begin) for begin in beginnings())]
        self.ended = {short(item.nodeid): "collected" for item in wanted}
        items[:] = [] if self.collect_only else wanted

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = short(report.nodeid)
        if report.failed or report.skipped or (report.when == "call" and self.ended.get(name) == "collected"):
            self.ended[name] = report.outcome

    def faults(self, row: int) -> list[str]:
        """What keeps a row from passing."""
        good = ("collected", "passed") if self.collect_only else ("passed",)
        missing = [b for b in ROWS[row][1:] if not any(name.startswith(b) for name in self.ended)]
        mine = {n: end for n, end in self.ended.items() if any(n.startswith(b) for b in ROWS[row][1:])}
        return [f"no test {b}*" for b in missing] + [f"{end}: {n}" for n, end in mine.items() if end not in good]


def short(node: str) -> str:
    """A test's id without its folder."""
    file, colons, rest = node.partition("::")
    return file.rpartition("/")[2] + colons + rest


def beginnings() -> list[str]:
    """Of the ids of all tests of the table."""
    return [begin for _, *begins in ROWS.values() for begin in begins]


def census(*, collect_only: bool = False) -> Census:
    """How the tests of all rows end; of those that are there, where `collect_only`."""
    found = Census(collect_only)
    names = dict.fromkeys(begin.partition("::")[0] for begin in beginnings())
    files = [str(path) for name in names for path in (ROOT / "tests").rglob(name)]
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    pytest.main([*options, *files], plugins=[found])
    return found


def main(arguments: Sequence[str]) -> int:
    """Print the count and what is wrong; 0 if every row that is not left out passes."""
    collect_only = "--collect" in arguments
    found = census(collect_only=collect_only)
    faults = {row: found.faults(row) for row in ROWS}
    good = [row for row in ROWS if not faults[row]]
    out = "; ".join(f"{row} because {why}" for row, why in LEFT_OUT.items())
    print(f"{len(good)} of 75 rows {'have tests' if collect_only else 'pass'}; left out: {out}")
    for row, why in PARTLY.items():
        print(f"row {row} in part: {why}")
    for row, what in faults.items():
        for line in what:
            print(f"row {row} ({ROWS[row][0]}): {line}")
    return 1 if any(faults.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
