"""Stand-ins for SLURM's commands: a folder for the path, and a file that says what they answer.

    slurm = StandIn(tmp_path / "slurm")            # its `bin` goes on PATH
    slurm.add("7", "PENDING", comment="rule_train_wildcards_x", reason="Priority")
    slurm.fail("squeue", "Unable to contact slurm controller")

They answer as SLURM 22.05 does, as far as this project, and the executor that it uses, ask.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "sinfo", "sacctmgr", "scontrol", "srun")
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
LETTERS = {"i": "id", "A": "id", "j": "name", "T": "state", "k": "comment", "Z": "folder", "N": "nodes", "r": "reason"}
LETTERS |= {"S": "start", "e": "end", "u": "user", "P": "partition"}
ALONE = ("all", "noheader", "parsable", "parsable2", "h", "n", "P", "X", "v", "requeue", "no-requeue")  # take no value
NO_ACCOUNTS = (
    "You are not running a supported accounting_storage plugin\nOnly 'accounting_storage/slurmdbd' is supported."
)


class StandIn:
    """What the commands answer; a change holds from the next command on."""

    def __init__(self, folder: Path):
        self.bin, self.file, self.called = folder / "bin", folder / "state.json", folder / "calls.jsonl"
        self.bin.mkdir(parents=True)
        for command in COMMANDS:
            script = self.bin / command
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {__file__} {command} {folder} "$@"\n')
            script.chmod(0o755)
        partitions = {"main": "infinite", "low": "1-00:00:00"}
        self._write({"jobs": {}, "fails": {}, "partitions": partitions, "accounts": None, "age": 300, "refused": ""})

    def _write(self, state: dict[str, Any]) -> None:
        beside = self.file.with_suffix(".new")
        beside.write_text(json.dumps(state))
        os.replace(beside, self.file)

    def read(self) -> dict[str, Any]:
        """What the commands have made of it."""
        return json.loads(self.file.read_text())

    def add(self, number: str, state: str = "RUNNING", **fields: str) -> None:
        """A job; fields by the names in LETTERS."""
        job = blank(number) | {"state": state} | ({} if state == "PENDING" else {"nodes": "node1", "reason": "None"})
        state = self.read()
        state["jobs"][number] = job | fields
        self._write(state)

    def fail(self, command: str, message: str = "", code: int = 1, seconds: float = 0.0) -> None:
        """From now on the command says this and exits so, after a while. An empty message and code 0: it works again,
        as slowly."""
        self.set("fails", self.read()["fails"] | {command: {"message": message, "code": code, "seconds": seconds}})

    def set(self, key: str, value: Any) -> None:
        """`accounts`: names, None without a database; `partitions`: their limits; `age`: MinJobAge in seconds;
        `refused`: why sbatch would take no job."""
        self._write(self.read() | {key: value})

    def calls(self, command: str) -> list[list[str]]:
        """The arguments of each call so far."""
        rows = [json.loads(line) for line in self.called.read_text().splitlines()] if self.called.exists() else []
        return [row[1:] for row in rows if row[0] == command]


def blank(number: str) -> dict[str, str]:
    """A job of this user that waits in this folder."""
    job = {"id": number, "name": "gode", "state": "PENDING", "comment": "(null)", "folder": os.getcwd(), "nodes": ""}
    return job | {"reason": "Priority", "start": "N/A", "end": "N/A", "user": str(os.getuid())}


def read_options(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """By name without dashes, and the words that are no options."""
    options, words, left = {}, [], list(arguments)
    while left:
        word = left.pop(0)
        name, is_whole, value = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            words.append(word)
        else:
            options[name] = value if is_whole else "" if name in ALONE or not left else left.pop(0)
    return options, words


def squeue(options: dict[str, str], state: dict[str, Any]) -> str:
    rows = list(state["jobs"].values())
    if number := options.get("jobs"):
        if number not in state["jobs"]:
            sys.exit("slurm_load_jobs error: Invalid job id specified")
        rows = [state["jobs"][number]]
    asked_for = options.get("states") or os.environ.get("SQUEUE_STATES")
    if asked_for != "all":
        rows = [row for row in rows if (row["state"] == asked_for if asked_for else row["state"] not in ENDED)]
    if partition := os.environ.get("SQUEUE_PARTITION"):
        rows = [row for row in rows if row.get("partition", "main") == partition]
    for option, field in (("name", "name"), ("user", "user")):
        rows = [row for row in rows if option not in options or row[field] == options[option]]
    form = options.get("o") or options["format"]
    return "".join(f"{filled(form, row)}\n" for row in rows)


def filled(form: str, row: dict[str, str]) -> str:
    head, *parts = form.split("%")
    return head + "".join(printed(LETTERS[part[0]], row) + part[1:] for part in parts)


def printed(field: str, row: dict[str, str]) -> str:
    """A time without its offset, and in the form that the user's environment asks for."""
    text = row.get(field, "")
    try:
        then = time.localtime(datetime.fromisoformat(text).timestamp())
    except ValueError:
        return text
    form = os.environ.get("SLURM_TIME_FORMAT", "standard")
    return time.strftime({"standard": "%Y-%m-%dT%H:%M:%S", "relative": "%H:%M"}.get(form, form), then)


def sacct(options: dict[str, str], state: dict[str, Any]) -> str:
    """Says who cancelled, as squeue does not."""
    if state["accounts"] is None:
        sys.exit("Slurm accounting storage is disabled")
    rows = [row for row in state["jobs"].values() if row["name"] == options.get("name", row["name"])]
    return "".join(f"{row['id']}|{row['state'].replace('CANCELLED', 'CANCELLED by 0')}\n" for row in rows)


def sacctmgr(state: dict[str, Any]) -> str:
    if state["accounts"] is None:
        sys.exit(NO_ACCOUNTS)
    return "".join(f"{name}\n" for name in state["accounts"])


def scancel(numbers: list[str], state: dict[str, Any]) -> None:
    for number in numbers:
        if number not in state["jobs"]:
            sys.exit(f"scancel: error: Kill job error on job id {number}: Invalid job id specified")
        state["jobs"][number]["state"] = "CANCELLED"


def sbatch(options: dict[str, str], state: dict[str, Any]) -> str:
    number = str(max(map(int, state["jobs"]), default=0) + 1)
    name, comment = options.get("job-name") or options.get("J", "sbatch"), options.get("comment", "(null)")
    state["jobs"][number] = blank(number) | {"name": name, "comment": comment}
    return f"{number}\n" if "parsable" in options else f"Submitted batch job {number}\n"


def answer(command: str, arguments: list[str], state: dict[str, Any]) -> str:
    options, words = read_options(arguments)
    if command in ("squeue", "sacct"):
        return {"squeue": squeue, "sacct": sacct}[command](options, state)
    if command == "sacctmgr":
        return sacctmgr(state)
    if command == "scancel":
        scancel(words, state)
    if command == "sbatch":
        return sbatch(options, state)
    if command == "sinfo":
        rows = state["partitions"].items()
        names = [name + "*" * (i == 0) for i, (name, _) in enumerate(rows)]  # the first is the default
        return "".join(options["o"].replace("%P", n).replace("%l", limit) + "\n" for n, (_, limit) in zip(names, rows))
    if command == "scontrol":  # show config
        return f"MinJobAge               = {state['age']} sec\n"
    return ""


def main(command: str, folder: Path, arguments: list[str]) -> None:
    if "--test-only" in arguments:  # is no submission
        refused = json.loads((folder / "state.json").read_text())["refused"]
        sys.exit(f"allocation failure: {refused}" if refused else 0)
    with open(folder / "calls.jsonl", "a") as file:
        file.write(json.dumps([command, *arguments]) + "\n")
    state = json.loads((folder / "state.json").read_text())
    if fails := state["fails"].get(command):
        time.sleep(fails["seconds"])
        if fails["message"] or fails["code"]:
            sys.stderr.write(fails["message"])
            sys.exit(fails["code"])
    before = json.dumps(state)
    sys.stdout.write(answer(command, arguments, state))
    if json.dumps(state) != before:
        (folder / "state.new").write_text(json.dumps(state))
        os.replace(folder / "state.new", folder / "state.json")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
