"""PostgreSQL for tests: a server of their own, on a socket in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_DEBIAN = "/usr/lib/postgresql/*/bin/initdb"  # not in the PATH there


def initdb() -> Path | None:
    """PostgreSQL's own tool to make a cluster; the server's others lie beside it."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve()] if found else sorted(Path("/").glob(_DEBIAN[1:]))
    return candidates[-1] if candidates else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if initdb() is None:
        for item in items:
            if item.get_closest_marker("postgresql"):
                item.add_marker(pytest.mark.skip(reason="PostgreSQL's initdb is not there"))


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """Of an empty database. The server refuses to run as root, and then runs as Debian's user postgres."""
    tools = initdb()
    assert tools is not None
    as_server = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="recurra-pg-"))  # short: a socket's path may have 107 characters
    try:
        if as_server:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
        options = f"-k {folder} -c listen_addresses= -c fsync=off"

        def run(tool: str, *arguments: str) -> None:
            command = [*as_server, str(tools.with_name(tool)), *arguments]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

        run("initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "-E", "UTF8")
        run("pg_ctl", "-D", f"{folder}/data", "-l", f"{folder}/log", "-o", options, "-w", "start")
        try:
            run("createdb", "-h", str(folder), "-U", "postgres", "recurra")
            yield f"postgresql://postgres@/recurra?host={folder}"
        finally:
            run("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
