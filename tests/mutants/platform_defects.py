"""Known defects of the platform: what loses, doubles or invents a result, or lets two processes have one cell."""

from typing import NamedTuple


class Defect(NamedTuple):
    """`sound` occurs once in pcexp/`file`; with `planted` there instead, one of `tests` must fail."""

    name: str
    file: str
    sound: str
    planted: str
    tests: tuple[str, ...]


PLATFORM = "tests/platform/"
CELLS = f"{PLATFORM}test_cells.py::"
ARCHIVES = f"{PLATFORM}test_archives.py::"
REFUSED = f"{PLATFORM}test_archives_refused.py::"
RECORDS = f"{PLATFORM}test_records.py::"
COLLECTING = f"{PLATFORM}test_collecting.py::"
CLAIMS = f"{PLATFORM}test_claims.py::"
INTERRUPTION = f"{PLATFORM}test_interruption.py::"
STATUS = f"{PLATFORM}test_verbs.py::"
CONTENT = f"{PLATFORM}test_content.py::"
MANIFEST = f"{PLATFORM}test_manifest.py::"

PLATFORM_DEFECTS = (
    Defect(
        "a lock that another process holds is taken",
        "records/lock.py",
        "if self.path.exists() and not self.stale(owner):",
        "if self.path.exists() and self.stale(owner) is None:",
        (f"{CELLS}test_a_fresh_lock_is_respected[alive]",),
    ),
    Defect(
        "a lock of a process that has died holds",
        "records/lock.py",
        '"pid" in owner and not _alive(',
        '"pid" not in owner and not _alive(',
        (f"{STATUS}test_a_lock_whose_process_has_died_is_nobodys_and_a_finished_study_names_no_command",),
    ),
    Defect(
        "two takers of one stale lock both have it",
        "records/lock.py",
        "fcntl.flock(folder, fcntl.LOCK_EX)",
        "pass",
        (f"{CELLS}test_of_several_takers_of_one_stale_lock_one_wins_and_the_others_hear_so",),
    ),
    Defect(
        "a lock is not kept fresh",
        "records/lock.py",
        "os.utime(self.path)",
        "os.stat(self.path)",
        (f"{CELLS}test_the_heart_beats_while_a_cell_is_held",),
    ),
    Defect(
        "a number means the same process in a container",
        "records/lock.py",
        'who.get("host"), who.get("processes")',
        'who.get("host"), ""',
        (f"{CELLS}test_a_fresh_lock_is_respected[a container's]",),
    ),
    Defect(
        "a process that was overtaken goes on writing",
        "records/cell.py",
        """        text = "".join(json.dumps(entry) + "\\n" for entry in entries)
        self.check()
""",
        """        text = "".join(json.dumps(entry) + "\\n" for entry in entries)
""",
        (f"{CELLS}test_a_process_that_was_overtaken_writes_nothing_more[rows-there]",),
    ),
    Defect(
        "data that changed are the cell that they were",
        "config/identity.py",
        "cell=cell_name([who.cell, content, flags])",
        "cell=cell_name([who.cell, flags])",
        (f"{CONTENT}test_a_file_whose_content_changed_is_another_cell_and_that_is_said",),
    ),
    Defect(
        "equal numbers are two cells",
        "config/identity.py",
        "int(node) if isinstance(node, float) and node.is_integer() else node",
        "node",
        (f"{CONTENT}test_equal_numbers_are_equal_configurations",),
    ),
    Defect(
        "a lane that failed counts as finished",
        "records/cell.py",
        'entries.items() if not _failed(entry["outcome"])}',
        "entries.items()}",
        (f"{STATUS}test_status_says_what_is_finished_who_works_what_failed_and_how_to_go_on",),
    ),
    Defect(
        "rows of a lane that goes on are there twice",
        "records/cell.py",
        'row["iteration"] < resume_at.get(row["lane"], 0)',
        'row["iteration"] <= resume_at.get(row["lane"], 0)',
        (f"{INTERRUPTION}test_rows_that_were_written_after_the_last_checkpoint_are_not_there_twice[with checkpoints]",),
    ),
    Defect(
        "rows are lost at a stop",
        "records/cell.py",
        'if row["lane"] in finished or row["iteration"] < resume_at.get(row["lane"], 0)',
        'if row["lane"] in finished',
        (f"{INTERRUPTION}test_a_stop_after_any_call_changes_no_number[4]",),
    ),
    Defect(
        "a lane that was adopted keeps the rows that were there",
        "records/cell.py",
        'for row in read_lines(self._rows_path) if row["lane"] not in names]',
        "for row in read_lines(self._rows_path)]",
        (f"{ARCHIVES}test_failed_lanes_stay_and_a_failed_or_begun_one_there_gives_way",),
    ),
    Defect(
        "archives are larger than they may be",
        "records/archive.py",
        "if _size(bins[-1] | files) > limit or",
        "if",
        (f"{ARCHIVES}test_archives_stay_below_the_limit_and_hold_all_lanes_between_them",),
    ),
    Defect(
        "lanes that are finished are unpacked again",
        "records/archive.py",
        "for entry in lanes.entries} - handle.finished.keys()",
        "for entry in lanes.entries}",
        (f"{ARCHIVES}test_unpacking_a_second_time_changes_no_byte_and_no_date",),
    ),
    Defect(
        "failed lanes travel",
        "records/archive.py",
        "for name, entry in Cell(folder, ()).finished.items() if name in asked}",
        'for entry in read_lines(folder / "lanes.jsonl") if (name := entry["lane"]) in asked}',
        (f"{ARCHIVES}test_failed_lanes_stay_and_a_failed_or_begun_one_there_gives_way",),
    ),
    Defect(
        "any name in an archive is a name of a cell",
        "records/archive.py",
        'r"[0-9a-f]{12}"',
        'r".*"',
        (f"{REFUSED}test_no_name_in_an_archive_leads_anywhere",),
    ),
    Defect(
        "the first outcome of a lane counts",
        "records/tables.py",
        '{e["lane"]: e for e in read_lines(folder / cell / "lanes.jsonl") if',
        '{e["lane"]: e for e in reversed([*read_lines(folder / cell / "lanes.jsonl")]) if',
        (f"{RECORDS}test_the_last_outcome_of_a_lane_counts",),
    ),
    Defect(
        "cells that nobody asked for are not named",
        "records/tables.py",
        "tuple(sorted(cells_there - cells.keys()))",
        "()",
        (f"{RECORDS}test_a_stray_cell_is_named_and_never_drawn",),
    ),
    Defect(
        "runs of an older revision are judged",
        "records/tables.py",
        'asked.filter(pl.col("revision") == asked["revision"].max())',
        "asked.clone()",
        (f"{COLLECTING}test_runs_of_an_older_revision_keep_their_numbers_and_are_neither_drawn_nor_judged",),
    ),
    Defect(
        "a lane is counted twice when it is collected again",
        "records/tables.py",
        "if len(there) == 2:",
        "if len(there) == 3:",
        (f"{COLLECTING}test_collecting_merges_and_never_deletes",),
    ),
    Defect(
        "a run that failed replaces one that ended elsewhere",
        "records/tables.py",
        'runs=new.runs.join(beaten, on=LANE, how="anti")',
        "runs=new.runs",
        (f"{COLLECTING}test_a_run_that_failed_elsewhere_does_not_replace_a_finished_one",),
    ),
    Defect(
        "a thinned lane loses its beginning",
        "records/tables.py",
        "np.concatenate([even, logarithmic])",
        "np.concatenate([even, even])",
        (f"{COLLECTING}test_a_thinned_lane_shows_its_beginning_on_a_logarithmic_axis",),
    ),
    Defect(
        "the manifest forgets lanes that were asked for before",
        "records/manifest.py",
        'lanes = dict(before["lanes"])',
        "lanes = {}",
        (f"{ARCHIVES}test_other_seeds_of_one_cell_are_asked_for_together_and_what_none_has_run_is_missing",),
    ),
    Defect(
        "a narrowed command narrows what was asked for",
        "run/sweep.py",
        "manifest.entries([*grid, *specs])",
        "manifest.entries(specs)",
        (f"{MANIFEST}test_a_command_that_is_narrower_than_the_grid_asks_for_the_whole_grid",),
    ),
    Defect(
        "two commands write the manifest at once",
        "records/manifest.py",
        "fcntl.flock(handle, fcntl.LOCK_EX)",
        "pass",
        (f"{MANIFEST}test_commands_that_ask_at_once_lose_no_cell",),
    ),
    Defect(
        "the manifest loses the blocks of other data",
        "records/manifest.py",
        "merged(known, cells), {**there, **grid}, list(said)",
        "merged(known, cells), {**grid}, list(said)",
        (f"{MANIFEST}test_blocks_of_other_data_are_kept_and_those_of_the_same_data_replaced",),
    ),
    Defect(
        "a manifest of an older revision is trusted",
        "records/manifest.py",
        'if entry["revision"] >= newest and cell not in other}',
        "if cell not in other}",
        (f"{MANIFEST}test_what_was_asked_for_at_an_older_revision_no_longer_is",),
    ),
    Defect(
        "an override that spells out a lane of the study makes it a variant",
        "records/manifest.py",
        'own = [one for one in (old, lane) if not one["variant"]] or [lane]',
        "own = [lane]",
        (f"{MANIFEST}test_a_lane_of_the_study_stays_its_own_though_an_override_spells_it_out[True]",),
    ),
    Defect(
        "a claim ignores missing runs",
        "report/claims.py",
        "if not values or (missing and not refuted):",
        "if not values:",
        ("tests/test_origin_hessian.py::test_a_run_without_numbers_leaves_the_claims_of_its_point_open",),
    ),
    Defect(
        "a time that was not seen counts as one that was",
        "report/claims.py",
        'Ratio(value, "exact" if denominator_seen else "at_most")',
        'Ratio(value, "exact")',
        (f"{CLAIMS}test_a_time_that_was_not_seen_bounds_the_ratio_from_its_side",),
    ),
    Defect(
        "rows that were mirrored before come twice",
        "run/tracking.py",
        'if row["iteration"] > last]',
        'if row["iteration"] > -1]',
        (f"{PLATFORM}test_tracking.py::test_a_requeued_lane_continues_its_run_without_a_row_twice",),
    ),
    Defect(
        "a changed checkout is called clean",
        "run/provenance.py",
        "return commit, bool(changes or new)",
        "return commit, False",
        (f"{PLATFORM}test_provenance.py::test_a_changed_tracked_file_makes_it_dirty_staged_or_not",),
    ),
    Defect(
        "examples that are held out are trained on too",
        "data/dataset.py",
        "np.sort(order[n_validation:])[: self.limit]",
        "np.sort(order)[: self.limit]",
        ("tests/data/test_bundled_data.py::test_digits_are_those_of_scikit_learn_each_in_one_split",),
    ),
)
