"""Several commands in one process: ``python -m tests.commands FILE``, a JSON list a line."""

import json
import sys
from pathlib import Path

from accelerate import PartialState

from arimage.cli.main import run

if __name__ == "__main__":
    ended = PartialState.destroy_process_group
    PartialState.destroy_process_group = lambda *_: None  # the end of a run, and the next one needs the group
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        try:
            run(json.loads(line))
        except SystemExit as finished:
            if finished.code:
                raise
    ended(PartialState())
