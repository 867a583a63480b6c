"""The bad inputs, 75 and those of strangers: which tests hold each of them, and which concern more than one machine.

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
PLACES, UNFIT, ANSWERS = "test_bad_places.py::test_", "test_unfit_runs.py::test_unfit[", "test_bad_answers.py::test_"
HOSTILE_WEIGHTS, LIMITS = "test_hostile_weights.py::test_weights[", "test_limits.py::test_"
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
    40: ("a bit flipped", "test_resume.py::test_a_damaged_newest_checkpoint", "test_fuzz.py::test_fuzz[manifest-"),
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
    # what strangers make, from here on: places to write to, runs to read, answers and caches, weights, limits
    100: ("eval, predictions lead out", f"{PLACES}refused[100-"),
    101: ("eval, best weights lead out", f"{PLACES}refused[101-"),
    102: ("eval, a file of the backbone leads out", f"{PLACES}refused[102-"),
    103: ("eval, a pipe for a summary", f"{PLACES}refused[103-"),
    104: ("run goes on, a checkpoint leads out", f"{PLACES}refused[104-"),
    105: ("run goes on, events have another name", f"{PLACES}refused[105-"),
    106: ("run goes on, a reporter's file has another name", f"{PLACES}refused[106-"),
    107: ("run, the lock leads out", f"{PLACES}refused[107-"),
    108: ("run goes on, the lock has another name", f"{PLACES}refused[108-"),
    109: ("run --fresh, checkpoints lead out", f"{PLACES}refused[109-"),
    110: ("run, a socket in the directory", f"{PLACES}refused[110-"),
    111: ("export, RUN/export leads out", f"{PLACES}refused[111-"),
    112: ("export, RUN/export/FORMAT leads out", f"{PLACES}refused[112-"),
    113: ("export --out through a link in a run", f"{PLACES}refused[113-"),
    114: ("adapt --keep, a backbone that leads out", f"{PLACES}refused[114-"),
    115: ("adapt --keep through a link in a run", f"{PLACES}refused[115-"),
    116: ("predict to a folder", f"{PLACES}refused[116-"),
    117: ("predict to a link in a run", f"{PLACES}refused[117-"),
    118: ("predict to a pipe in a run", f"{PLACES}refused[118-"),
    119: ("predict through a link in a run", f"{PLACES}refused[119-"),
    120: ("predict to a link that leads to itself", f"{PLACES}refused[120-"),
    121: ("predict to a full device", f"{PLACES}refused[121-"),
    122: ("predict to a closed descriptor", f"{PLACES}refused[122-"),
    123: ("schema to a socket", f"{PLACES}refused[123-"),
    124: ("schema to a link in a run", f"{PLACES}refused[124-"),
    125: ("report to its default, which is a link", f"{PLACES}refused[125-"),
    126: ("report to a folder", f"{PLACES}refused[126-"),
    127: ("recipes copy, the schema's folder leads out", f"{PLACES}refused[127-"),
    128: ("recipes copy, the schema leads out", f"{PLACES}refused[128-"),
    129: ("recipes copy to a link that leads nowhere", f"{PLACES}refused[129-"),
    130: ("a summary that is a pipe", f"{UNFIT}130"),
    131: ("a run's recipe that is a pipe", f"{UNFIT}131"),
    132: ("a run's recipe that is a link to an endless device", f"{UNFIT}132"),
    133: ("a lock that is a pipe", f"{UNFIT}133"),
    134: ("a lock that lies elsewhere", f"{UNFIT}134"),
    135: ("events that are a pipe", f"{UNFIT}135"),
    136: ("events that are a socket", f"{UNFIT}136"),
    137: ("events of ten gigabytes", f"{UNFIT}137"),
    138: ("a manifest that is a pipe", f"{UNFIT}138"),
    139: ("a manifest of ten gigabytes", f"{UNFIT}139"),
    140: ("weights that are a pipe", f"{UNFIT}140"),
    141: ("weights that lie elsewhere", f"{UNFIT}141"),
    142: ("weights of ten gigabytes", f"{UNFIT}142"),
    143: ("best weights behind two links", f"{UNFIT}143"),
    144: ("a best link that leads up", f"{UNFIT}144"),
    145: ("a best link to itself", f"{UNFIT}145"),
    146: ("checkpoints that lie elsewhere", f"{UNFIT}146"),
    147: ("a run's tokenizer that is a pipe", f"{UNFIT}147"),
    148: ("a run's config.json that is a link to an endless device", f"{UNFIT}148"),
    149: ("a run's tokenizer of ten gigabytes", f"{UNFIT}149"),
    150: ("a number beyond every float in a summary", f"{UNFIT}150"),
    151: ("a key given twice in a summary", f"{UNFIT}151"),
    152: ("a summary of a hundred levels", f"{UNFIT}152"),
    153: ("a summary of a hundred thousand levels", f"{UNFIT}153"),
    154: ("half of a surrogate pair in a summary", f"{UNFIT}154"),
    155: ("a mean beyond every float32", f"{UNFIT}155"),
    156: ("a number of 5,000 digits", f"{UNFIT}156"),
    157: ("true for a number", f"{UNFIT}157"),
    158: ("a key given twice in a manifest", f"{UNFIT}158"),
    159: ("best weights that are an empty folder", f"{UNFIT}159"),
    160: ("hub: commit that is a path", f"{ANSWERS}answer[160-"),
    161: ("hub: commit cut or in capitals", f"{ANSWERS}answer[161-"),
    162: ("hub: another commit than was asked for", f"{ANSWERS}answer[162-"),
    163: ("hub: ETag that is a path", f"{ANSWERS}answer[163-"),
    164: ("hub: ETag that is no hash", f"{ANSWERS}answer[164-"),
    165: ("hub: size that is none", f"{ANSWERS}answer[165-"),
    166: ("hub: 404 with a commit that is a path", f"{ANSWERS}answer[166-"),
    167: ("address: packed body", f"{ANSWERS}answer[167-"),
    168: ("hub: packed body", f"{ANSWERS}answer[168-"),
    169: ("redirect to a local file", f"{ANSWERS}answer[169-"),
    170: ("redirect to another scheme", f"{ANSWERS}answer[170-"),
    171: ("redirect with a user name", f"{ANSWERS}answer[171-"),
    172: ("redirects without end", f"{ANSWERS}answer[172-"),
    173: ("redirect that is no address", f"{ANSWERS}answer[173-"),
    174: ("odd statuses", f"{ANSWERS}answer[174-"),
    175: ("more bytes than announced", f"{ANSWERS}answer[175-"),
    176: ("a body without end", f"{ANSWERS}answer[176-"),
    177: ("a model's file of 10 GB", f"{ANSWERS}answer[177-"),
    178: ("a body that drips", f"{ANSWERS}answer[178-"),
    179: ("headers that drip", f"{ANSWERS}answer[179-"),
    180: ("another range than was asked for", f"{ANSWERS}answer[180-"),
    181: ("no HTTP, endless headers, no length", f"{ANSWERS}answer[181-"),
    182: ("other bytes", f"{ANSWERS}answer[182-"),
    183: ("redirect from elsewhere to this machine", f"{ANSWERS}a_hub_elsewhere_that_redirects_to_this_machine[183-"),
    184: ("redirect to a cloud's own service", f"{ANSWERS}a_hub_elsewhere_that_redirects_to_this_machine[184-"),
    185: ("disk full while fetching", f"{ANSWERS}a_full_disk_leaves_no_part"),
    186: ("cache that others may write to", f"{ANSWERS}caches_that_others_may_write_to[186-"),
    187: ("cache of another user", f"{ANSWERS}caches_that_others_may_write_to[187-"),
    188: ("hub's cache that everybody may write to", f"{ANSWERS}caches_that_others_may_write_to[188-"),
    189: ("names that the hub does not allow", f"{ANSWERS}names_that_the_hub_does_not_allow["),
    190: ("a shard by a path", f"{HOSTILE_WEIGHTS}190-"),
    191: ("a shard by an absolute path", f"{HOSTILE_WEIGHTS}191-"),
    192: ("a pickle as a shard", f"{HOSTILE_WEIGHTS}192-"),
    193: ("a shard that is missing", f"{HOSTILE_WEIGHTS}193-"),
    194: ("shards swapped", f"{HOSTILE_WEIGHTS}194-"),
    195: ("a tensor in two shards", f"{HOSTILE_WEIGHTS}195-"),
    196: ("shards and index that disagree on a tensor", f"{HOSTILE_WEIGHTS}196-"),
    197: ("a shard cut short", f"{HOSTILE_WEIGHTS}197-"),
    198: ("a pipe as a shard or index", f"{HOSTILE_WEIGHTS}198-"),
    199: ("float8 weights", f"{HOSTILE_WEIGHTS}199-"),
    200: ("integer weights", f"{HOSTILE_WEIGHTS}200-"),
    201: ("complex weights", f"{HOSTILE_WEIGHTS}201-"),
    202: ("bool weights", f"{HOSTILE_WEIGHTS}202-"),
    203: ("quantised weights", f"{HOSTILE_WEIGHTS}203-"),
    204: ("config.json: another attention", f"{HOSTILE_WEIGHTS}204-"),
    205: ("config.json: another attention, nested", f"{HOSTILE_WEIGHTS}205-"),
    206: ("config.json: other weights", f"{HOSTILE_WEIGHTS}206-"),
    207: ("config.json: another configuration file", f"{HOSTILE_WEIGHTS}207-"),
    208: ("an adapter", f"{HOSTILE_WEIGHTS}208-"),
    209: ("an architecture that is remote code alone", f"{HOSTILE_WEIGHTS}209-"),
    210: ("weights of remote code under a known architecture", f"{HOSTILE_WEIGHTS}210-"),
    211: ("modules.json: code of its own", f"{HOSTILE_WEIGHTS}211-"),
    212: ("modules.json: a path outside", f"{HOSTILE_WEIGHTS}212-"),
    213: ("modules.json: no encoder first", f"{HOSTILE_WEIGHTS}213-"),
    214: ("an index that is none", f"{HOSTILE_WEIGHTS}214-"),
    215: ("an index of 1,001 files", f"{HOSTILE_WEIGHTS}215-"),
    216: ("a tensor under two names", f"{HOSTILE_WEIGHTS}216-"),
    217: ("config.json: a backbone of another library", f"{HOSTILE_WEIGHTS}217-"),
    218: ("config.json: other kernels", f"{HOSTILE_WEIGHTS}218-"),
    219: ("weights far larger than the encoder", f"{HOSTILE_WEIGHTS}219-"),
    220: ("--out of 5,000 characters", f"{LIMITS}name[220-"),
    221: ("a recipe's path of 5,000 characters", f"{LIMITS}name[221-"),
    222: ("--set with a key of 5,000 characters", f"{LIMITS}name[222-"),
    223: ("names of 5,000 characters in a recipe", f"{LIMITS}name[223-"),
    224: ("weights of 5,000 characters", f"{LIMITS}name[224-"),
    225: ("data files of 5,000 characters", f"{LIMITS}name[225-"),
    226: ("output files of 5,000 characters", f"{LIMITS}name[226-"),
    227: ("reports, schemas and copies of 5,000 characters", f"{LIMITS}name[227-"),
    228: ("devices of 5,000 characters", f"{LIMITS}name[228-"),
    229: ("run directories of 5,000 characters", f"{LIMITS}name[229-"),
    230: ("plugins, parts and tasks of 5,000 characters", f"{LIMITS}name[230-"),
    231: ("labels, ids and headings of 5,000 characters", f"{LIMITS}cell"),
    232: ("less memory than numpy, PyTorch or a step take", f"{LIMITS}memory"),
    233: ("no thread can be started", f"{LIMITS}threads"),
    234: ("the machine lacks memory or threads midway", f"{LIMITS}lack", f"{LIMITS}a_built_in_plugin"),
    235: ("resumed under another MKL_CBWR", f"{LIMITS}variable[235-"),
    236: ("resumed under another ONEDNN_MAX_CPU_ISA", f"{LIMITS}variable[236-"),
    237: ("resumed with other threads by OMP_DYNAMIC, OMP_THREAD_LIMIT", f"{LIMITS}variable[237-"),
    238: ("resumed under another precision of oneDNN, instructions of MKL", f"{LIMITS}variable[238-"),
    239: ("locks with and without variables", f"{LIMITS}a_variable", f"{LIMITS}a_lock"),
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


@dataclass(eq=False)  # pytest keeps plugins in sets
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
    print(
        f"{len(good)} of {len(ROWS) + len(LEFT_OUT)} rows {'have tests' if collect_only else 'pass'}; left out: {out}"
    )
    for row, why in PARTLY.items():
        print(f"row {row} in part: {why}")
    for row, what in faults.items():
        for line in what:
            print(f"row {row} ({ROWS[row][0]}): {line}")
    return 1 if any(faults.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
