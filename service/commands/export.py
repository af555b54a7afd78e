"""`recurra models export`: a version as a folder or an archive that needs nothing else, and its checksums.

    recurra models export en-fr --out en-fr.tar.gz     and en-fr.tar.gz.sha256, for `sha256sum --check`
    recurra models export en-fr --out folder           and folder/SHA256SUMS

The folder, unpacked or not, is a checkpoint: it can be moved into another machine's RECURRA_CHECKPOINTS as it is. The
same version gives the same archive, byte for byte.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from model.errors import InvalidValue
from model.files import sha256_of, write_atomically
from service.commands import options
from service.errors import CannotStore
from service.inference.versions import LINEAGE_FILE

SUMS_FILE = "SHA256SUMS"
_ARCHIVE = ".tar.gz"


def export(
    model: Annotated[str, typer.Argument(help="Name of a model.")],
    out: Annotated[Path, typer.Option(help="Folder to make, or an archive where it ends in .tar.gz.")],
    version: Annotated[str, typer.Option(help="One of its versions; else the live one.")] = "",
    checkpoints: options.CheckpointsOption = None,
) -> None:
    """Copy a version out, as a folder or .tar.gz with checksums, once its files are seen to be sound."""
    from model.checkpoint import load_checkpoint

    if out.exists():
        raise InvalidValue("--out", str(out), "a path where there is nothing yet")
    store = options.version_store(checkpoints)
    folder = store.folder(model, version or store.live(model) or "")
    found = load_checkpoint(folder).version
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as name:
            whole = Path(name) / model
            _copy(folder, whole)
            if out.name.endswith(_ARCHIVE):
                write_atomically(out, _archive(whole))
                sums = f"{sha256_of(out)}  {out.name}\n"
                write_atomically(out.with_name(out.name + ".sha256"), sums.encode())
            else:
                whole.rename(out)
    except OSError as exc:
        raise CannotStore(f"{out} cannot be written: {exc.strerror or exc}") from exc
    typer.echo(f"{model}: version {found} is in {out}")


def _copy(folder: Path, target: Path) -> None:
    """The checkpoint's own files and the lineage, and the checksum of each."""
    import json

    target.mkdir(mode=0o755)
    names = ["config.json", *json.loads((folder / "config.json").read_bytes())["files"], LINEAGE_FILE]
    for name in names:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    sums = "".join(f"{sha256_of(path)}  {path.name}\n" for path in sorted(target.iterdir()))
    write_atomically(target / SUMS_FILE, sums.encode())


def _archive(folder: Path) -> bytes:
    """The same bytes for the same files: no times, no owners, in the order of the names."""
    content = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=content, mode="wb", mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for path in sorted(folder.iterdir()):
            info = tarfile.TarInfo(os.fspath(Path(folder.name) / path.name))
            info.size = path.stat().st_size
            info.mode = 0o644
            with path.open("rb") as stream:
                archive.addfile(info, stream)
    return content.getvalue()
