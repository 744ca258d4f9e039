"""How a stage starts and ends: logging, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable

BAD_INPUT = 2
READER_LEFT = 141  # as the shell says it: `| head` has seen enough
NOT_FINISHED = 85  # interrupted after a checkpoint: the same command goes on


def run(main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser) -> None:
    """Parse, call `main`, exit. ValueError and OSError are the user's or the machine's: one line, no traceback
    (GODE_TRACEBACK=1 shows it). Anything else is ours and shows where."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = parser.parse_args()
    try:
        code = main(arguments) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to print is wanted no more
        code = READER_LEFT
    except (ValueError, OSError) as error:
        if os.environ.get("GODE_TRACEBACK"):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)


def _one_line(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}{_advice(error)}"
    return " ".join(str(error).split())


def _advice(error: OSError) -> str:
    return {
        errno.ENOSPC: "; free some space, then run the same command: it goes on from the last checkpoint",
        errno.EDQUOT: "; your quota is spent: free some space, then run the same command",
        errno.EACCES: "; choose a folder that you may write, with `--config results=FOLDER` or `data=FOLDER`",
        errno.EROFS: "; choose a folder that you may write, with `--config results=FOLDER` or `data=FOLDER`",
    }.get(error.errno or 0, "")
