"""The node's log: one JSON object a line on standard error, for the journal."""

import json
import logging
from datetime import datetime, timezone

from medimg.runtime.files.text import printable


class JsonLines(logging.Formatter):
    """Formats records as JSON; a traceback is one more field."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        fields = {
            "at": at,
            "level": record.levelname,
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def log_json_lines() -> None:
    """Have every record written so, from the level that was asked for, and the node's own from INFO."""
    logging.getLogger("medimg.runtime.node").setLevel(
        min(logging.INFO, logging.getLogger().getEffectiveLevel())
    )
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines())
