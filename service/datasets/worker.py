"""`python -m service.datasets.worker`: one upload, in a process of its own.

The body comes on standard input; what became of it goes to standard output, as one JSON object. A process of its own,
since cleaning a gigabyte keeps an interpreter busy for minutes, at whose lock the decoding of translations would wait;
of low priority for the same reason. It ends, and removes what it began, where the body breaks off.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from model.errors import InvalidValue
from service.datasets.errors import DatasetError, error_to_json, told_apart
from service.datasets.formats import UnpackLimit
from service.datasets.parts import Form
from service.datasets.store import DatasetStore
from service.datasets.upload import store_upload

_NICENESS = 10


def main() -> None:
    os.nice(_NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which lets its requests finish
    task = json.loads(sys.argv[1])
    store = DatasetStore(Path(task["root"]))
    try:
        with told_apart():
            form = Form(sys.stdin.buffer, task["boundary"].encode("latin-1"))
            limit = UnpackLimit(max_bytes=task["max_unpacked_bytes"])
            dataset, is_new = store_upload(form.parts(), store, limit)
        result = {"name": dataset.name, "is_new": is_new}
    except (DatasetError, InvalidValue) as exc:
        result = {"error": error_to_json(exc)}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
