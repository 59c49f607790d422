"""The agent's own log: loguru to a file that turns over; the standard library's logging with it."""

import logging
import sys
from pathlib import Path

from loguru import logger

FORMAT = "{time:YYYY-MM-DDTHH:mm:ss.SSSZ} {level: <7} {name}: {message}"
ROTATE_AT = "16 MB"
KEPT_FILES = 3


class _ToLoguru(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logger.opt(exception=record.exc_info).log(
            record.levelname if record.levelname in _LEVELS else record.levelno,
            record.getMessage(),
        )


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def set_up(path: Path, level: str) -> None:
    """Write everything of `level` and above to `path`, and warnings to standard error too."""
    logger.remove()
    # diagnose would print the values of variables beside a traceback: secrets among them.
    logger.add(
        path, level=level, format=FORMAT, rotation=ROTATE_AT, retention=KEPT_FILES, diagnose=False
    )
    logger.add(sys.stderr, level="ERROR", format=FORMAT, diagnose=False)
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.WARNING, force=True)
