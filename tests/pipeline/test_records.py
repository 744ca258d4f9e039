"""Rows in and out, files that are replaced whole or not at all, and how a stage ends."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import math
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pipeline import stage
from pipeline.records import (
    AttemptRecord,
    DecisionRecord,
    EvaluationRecord,
    PathRecord,
    TrainingRecord,
    ValidityRecord,
    WeightRecord,
    append_record,
    read_records,
    replace_file,
    to_line,
    write_records,
)

KINDS = (
    *(TrainingRecord, EvaluationRecord, WeightRecord, AttemptRecord),
    *(ValidityRecord, PathRecord, DecisionRecord),
)
NO_NUMBERS = (math.nan, math.inf, -math.inf)


def record(kind: type, number: int = 0, **changes: Any) -> Any:
    """A row of a kind, with values that odd printing would lose."""
    samples = {int: number, float: number + 1 / 3, str: 'ein "Wort"\n\u2028\x85 φ'}
    hints = get_type_hints(kind)
    values = {f.name: samples.get(hints[f.name], "ok") for f in dataclasses.fields(kind)}
    return kind(**values | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_survive_the_file(kind, tmp_path):
    """None, 17 digits, line separators and quotes too."""
    path, rows = tmp_path / "new" / "rows.jsonl", [record(kind, number) for number in range(3)]
    write_records(path, rows)
    assert read_records(kind, path) == rows
    append_record(path, rows[0])
    append_record(path, rows[1])
    assert read_records(kind, path) == [*rows, rows[0], rows[1]]


def test_a_file_without_rows_has_none(tmp_path):
    write_records(tmp_path / "rows.jsonl", [])
    assert read_records(TrainingRecord, tmp_path / "rows.jsonl") == []


def test_appending_makes_the_folder(tmp_path):
    append_record(tmp_path / "state" / "rows.jsonl", record(AttemptRecord))
    assert read_records(AttemptRecord, tmp_path / "state" / "rows.jsonl") == [record(AttemptRecord)]


@pytest.mark.parametrize("beyond", [0, 10, 200])
def test_a_row_that_a_full_disk_cuts_off_leaves_nothing(tmp_path, beyond):
    """A limit on the file's size, in place of a quota: the row after it is as if there had been none."""
    path = tmp_path / "rows.jsonl"
    append_record(path, record(AttemptRecord, 1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + beyond, limits[1]))
    try:
        with pytest.raises(OSError):
            append_record(path, record(AttemptRecord, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append_record(path, record(AttemptRecord, 3))
    assert read_records(AttemptRecord, path) == [record(AttemptRecord, 1), record(AttemptRecord, 3)]


def test_a_row_after_one_that_was_cut_off_is_whole(tmp_path):
    """A power cut: the broken row can be deleted, and the next one be read."""
    path = tmp_path / "rows.jsonl"
    append_record(path, record(AttemptRecord))
    path.write_bytes(path.read_bytes() + b'{"job": "cut o')
    append_record(path, record(AttemptRecord))
    first, broken, last = path.read_text().splitlines()
    assert (first, broken) == (last, '{"job": "cut o')


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_number_that_does_not_exist_becomes_null(value, tmp_path):
    row = record(TrainingRecord, train_loss=value, validation_accuracy=None)
    line = to_line(row)
    assert json.loads(line, parse_constant=pytest.fail)["train_loss"] is None
    write_records(tmp_path / "rows.jsonl", [row])
    assert read_records(TrainingRecord, tmp_path / "rows.jsonl") == [dataclasses.replace(row, train_loss=None)]


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_row_that_is_cut_off_is_refused_with_its_line(cut, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_records(path, [record(WeightRecord, number) for number in range(3)])
    content = path.read_bytes()
    path.write_bytes(content[: -cut - 1])
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: a broken row \(cut off\?\); delete the file"):
        read_records(WeightRecord, path)


@pytest.mark.parametrize("line", [b"\n", b"\0\0\0\n", b'{"caf\xe9": 1}\n', b"{}}\n"])
def test_what_is_no_json_is_refused_with_its_line(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(to_line(record(WeightRecord)).encode() + line)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: a broken row"):
        read_records(WeightRecord, path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda row: row | {"colour": 1}, "colour"),
        (lambda row: {k: v for k, v in row.items() if k != "depth"}, "depth"),
        (lambda row: [row], "no columns"),
        (lambda row: None, "no columns"),
    ],
)
def test_a_row_with_other_columns_is_refused_with_their_names(change, named, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = json.loads(to_line(record(WeightRecord)))
    path.write_text(to_line(record(WeightRecord)) + json.dumps(change(row)) + "\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: not a WeightRecord \(missing or unknown: {named}\); delete"):
        read_records(WeightRecord, path)


def test_a_row_of_another_kind_is_refused(tmp_path):
    write_records(tmp_path / "rows.jsonl", [record(WeightRecord)])
    with pytest.raises(ValueError, match="not a TrainingRecord"):
        read_records(TrainingRecord, tmp_path / "rows.jsonl")


def test_a_replaced_file_is_new_and_alone(tmp_path):
    path = tmp_path / "deep" / "er" / "x.txt"
    for content in (b"old", b"new", b""):
        replace_file(path, content)
        assert path.read_bytes() == content
        assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


def test_a_replaced_file_may_be_read_as_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    replace_file(tmp_path / "x", b"")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_when_writing_fails_the_old_file_stands_and_nothing_lies_beside_it(tmp_path, monkeypatch, old, call, error):
    path = tmp_path / "x.txt"
    if old is not None:
        path.write_bytes(old)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)) as raised:
        replace_file(path, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if old is None else {"x.txt": old})
    assert isinstance(error, KeyboardInterrupt) or raised.value.filename == str(path)


def test_when_a_record_cannot_be_printed_the_old_rows_stand(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_records(path, [record(WeightRecord)])
    with pytest.raises(TypeError):
        write_records(path, [record(WeightRecord), record(WeightRecord, value=object())])
    assert read_records(WeightRecord, path) == [record(WeightRecord)]


def test_the_new_file_is_whole_on_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """Flushed and synced, then replaced: a crash between leaves the old file or the new one."""
    calls, path = [], tmp_path / "x.txt"
    path.write_bytes(b"old")
    sync, move = os.fsync, os.replace

    def fsync(handle):
        calls.append(("fsync", os.fstat(handle).st_size, path.read_bytes()))
        sync(handle)

    def replace(source, target):
        calls.append(("replace", Path(source).read_bytes(), path.read_bytes(), Path(source).parent == path.parent))
        move(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    replace_file(path, b"whole")
    assert calls == [("fsync", 5, b"old"), ("replace", b"whole", b"old", True)]


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """On two machines even their process numbers may be equal."""
    sources, move = [], os.replace
    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(os, "replace", lambda source, target: (sources.append(source), move(source, target)))
    replace_file(tmp_path / "x", b"1")
    replace_file(tmp_path / "x", b"2")
    assert len(set(sources)) == 2


@pytest.fixture
def run(monkeypatch, capsys):
    def run(main) -> tuple[int, str]:
        """The exit code and stderr of a stage."""
        monkeypatch.setattr(sys, "argv", ["stage"])
        with pytest.raises(SystemExit) as end:
            stage.run(main, argparse.ArgumentParser())
        return end.value.code, capsys.readouterr().err  # type: ignore[return-value]

    monkeypatch.delenv("GODE_TRACEBACK", raising=False)
    return run


def raising(error: BaseException):
    def main(arguments: argparse.Namespace):
        raise error

    return main


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (stage.NOT_FINISHED, stage.NOT_FINISHED)])
def test_a_stage_that_ends_well_is_silent(run, returned, code):
    assert run(lambda arguments: returned) == (code, "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("x.yaml: this\n  and   that"), "x.yaml: this and that"),
        (OSError(errno.ENOSPC, "No space left on device", "r/x"), "r/x: No space left on device; free some space"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "r/x"), "r/x: Disk quota exceeded; your quota is spent"),
        (PermissionError(errno.EACCES, "Permission denied", "r/x"), "r/x: Permission denied; choose a folder"),
        (OSError(errno.EROFS, "Read-only file system", "r/x"), "r/x: Read-only file system; choose a folder"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "x: No such file or directory"),
        (OSError("the disk is gone"), "the disk is gone"),
    ],
)
def test_what_a_user_or_a_machine_causes_is_one_line_and_code_2(run, error, line):
    code, text = run(raising(error))
    assert code == stage.BAD_INPUT == 2
    assert text.startswith(f"error: {line}")
    assert text.count("\n") == 1
    assert "Traceback" not in text


@pytest.mark.parametrize("error", [TypeError("ours"), KeyError("ours"), AssertionError("ours"), RuntimeError("ours")])
def test_a_bug_is_not_hidden(error, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(type(error), match="ours"):
        stage.run(raising(error), argparse.ArgumentParser())


@pytest.mark.parametrize("error", [ValueError("theirs"), OSError(errno.ENOSPC, "theirs")])
def test_the_traceback_is_shown_on_demand(error, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.setenv("GODE_TRACEBACK", "1")
    with pytest.raises(type(error), match="theirs"):
        stage.run(raising(error), argparse.ArgumentParser())


@pytest.mark.parametrize(("error", "code", "shown"), [("ValueError", 2, False), ("TypeError", 1, True)])
def test_a_whole_process_ends_like_that(error, code, shown):
    program = (
        "import argparse; from pipeline import stage\n"
        f"def main(arguments): raise {error}('why')\n"
        "stage.run(main, argparse.ArgumentParser())"
    )
    root = Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "GODE_TRACEBACK"}
    end = subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True)
    assert end.returncode == code
    assert ("Traceback" in end.stderr) == shown
    assert "why" in end.stderr
