"""The server's log: lines of JSON on standard error."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("arimage.server")


class JsonLines(logging.Formatter):
    """A record as a line of JSON, with what is in its ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


@contextmanager
def logging_to_stderr(quiet: bool = False) -> Iterator[None]:
    """Write the server's log, and what uvicorn has to say, on standard error; for a process that is a server.

    Args:
        quiet: only what goes wrong.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    levels = {LOG: logging.WARNING if quiet else logging.INFO, logging.getLogger("uvicorn.error"): logging.WARNING}
    before = [(log, log.handlers, log.level, log.propagate) for log in levels]
    for log, level in levels.items():
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)
    try:
        yield
    finally:
        for log, handlers, level, propagate in before:
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
