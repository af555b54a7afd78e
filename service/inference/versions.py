"""Named models and their versions on disk. Loads nothing for serving and knows no HTTP.

    checkpoints/en-fr/config.json …           a plain checkpoint: a version too, live until another is promoted
    checkpoints/en-fr/versions/3f9a1c20b7de/  a version that was published: a checkpoint and its lineage.json
    checkpoints/en-fr/live.json               which version is live; see service.inference.pointer
    checkpoints/en-fr/.lock                   held by whoever changes something here

A version's name is the first 12 digits of its weights' sha256, so that publishing the same weights twice is once.

Made for several processes and replicas on one folder. Readers take no lock: a version comes into being by one rename
of a folder that is complete and checked, the pointer by one rename of a file, and a name that starts with a dot is
never looked at. Writers take the model's lock (`filelock`: it ends with its process, so that nobody is locked out by
one that was killed). On a network file system this needs one that keeps locks (NFS 4 does).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model.errors import CheckpointError, InvalidValue
from model.files import sync, write_json
from service.errors import CannotStore, NoPreviousVersion, UnknownModel, UnknownVersion, VersionConflict, VersionIsLive
from service.inference.pointer import Pointer, Switch, read_pointer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
LINEAGE_FILE = "lineage.json"
VERSIONS_FOLDER = "versions"
LINEAGE_FORMAT_VERSION = 1

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9a-f]{12}")
_LOCK_SECONDS = 60.0  # a writer holds it for a copy of a checkpoint at most


@dataclass(frozen=True, kw_only=True)
class VersionInfo:
    """A version as it stands on disk.

    Attributes:
        folder: the checkpoint's.
        published_at: unix seconds.
        num_bytes: of its weights.
        lineage: where it comes from: dataset hash, configuration, seed, parent, job, scores; what is known.
    """

    version: str
    folder: Path = field(repr=False)
    is_live: bool
    published_at: float
    num_bytes: int
    lineage: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is to be served of a model.

    Attributes:
        version: empty where the folder does not tell: it is damaged, and loading it says how.
        folder: the checkpoint's.
        stamp: changes when somebody writes another checkpoint into the same folder.
    """

    version: str
    folder: Path
    stamp: tuple[int, int]


def check_name(name: str, field_name: str = "model") -> str:
    """Raises InvalidValue for what cannot be a new model's name."""
    if not _NAME.fullmatch(name) or ".." in name:
        allowed = "1 to 64 of a-z, 0-9, '.', '_' and '-', with a letter or digit first and no '..'"
        raise InvalidValue(field_name, name, allowed)
    return name


def checkpoint_folders(root: Path) -> list[Path]:
    """The models' folders in `root`, by name; `root` itself where it is one. Hidden folders are left out."""
    if (root / CONFIG_FILE).is_file():
        return [root]
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


class VersionStore:
    """All models in one folder.

    Args:
        root: the folder of the models, or the folder of a single one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- reading: no lock, no change -----------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The models there are."""
        return [path.resolve().name for path in checkpoint_folders(self.root)]

    def versions(self, name: str) -> list[VersionInfo]:
        """Every version of a model, the newest first. Raises UnknownModel, CheckpointError."""
        live = self.live(name)
        infos = [_info(folder, version, version == live) for version, folder in self._folders(name).items()]
        return sorted(infos, key=lambda info: (info.published_at, info.version), reverse=True)

    def live(self, name: str) -> str | None:
        """The live version; None where there is none yet.

        A pointer whose version is gone (removed by hand) counts as none: then it is the plain checkpoint, or else the
        last one that was live and is still there.
        """
        folders = self._folders(name)
        pointer = read_pointer(self._model(name))
        if pointer is not None:
            plain = [version for version, folder in folders.items() if folder == self._model(name)]
            candidates = [pointer.live, *plain, *reversed(pointer.previous)]
            return next((version for version in candidates if version in folders), None)
        return _version_of(self._model(name))

    def folder(self, name: str, version: str) -> Path:
        """Raises UnknownModel, UnknownVersion."""
        folders = self._folders(name)
        if version not in folders:
            raise UnknownVersion(name, version, list(folders))
        return folders[version]

    def target(self, name: str) -> Target | None:
        """What is to be served: the live version, or a damaged plain checkpoint; None where nothing is live."""
        version = self.live(name)
        if version is not None:
            return _target(version, self.folder(name, version))
        model = self._model(name)
        return None if (model / VERSIONS_FOLDER).is_dir() else _target("", model)

    def target_of(self, name: str, version: str) -> Target:
        """Raises UnknownModel, UnknownVersion."""
        return _target(version, self.folder(name, version))

    def history(self, name: str) -> list[Switch]:
        """Every switch there was, the last one first."""
        pointer = read_pointer(self._model(name))
        return [] if pointer is None else list(reversed(pointer.history))

    def previous(self, name: str) -> str:
        """Where a rollback would go. Raises NoPreviousVersion."""
        return self._moved_back(name).live

    # -- writing: under the model's lock -------------------------------------------------------------------------------

    def publish(self, name: str, folder: Path, *, lineage: dict[str, Any]) -> str:
        """Copies a finished checkpoint in as a version of `name`, which is made if new. It does not go live.

        Returns:
            The version; the one that is there already where the same weights were published before.

        Raises:
            InvalidValue: the name.
            CheckpointError: the folder is no sound checkpoint.
            CannotStore: the disk is full, or not ours to write to.
        """
        check_name(name)
        model = self.root if self._is_single and name == self.root.resolve().name else self.root / name
        if self._is_single and model != self.root:
            raise InvalidValue(
                "model", name, f"{self.root.resolve().name}: {self.root} is the folder of that one model"
            )
        with _storing(model):
            (model / VERSIONS_FOLDER).mkdir(parents=True, exist_ok=True)
        with self._locked(model):
            return self._take_in(model, folder, lineage)

    def set_live(self, name: str, version: str, *, reason: str) -> None:
        """Makes a version live. Raises UnknownModel, UnknownVersion, CannotStore."""
        model = self._model(name)
        self.folder(name, version)
        with self._locked(model):
            self.folder(name, version)  # nobody deleted it while we waited for the lock
            before = self._pointer(name) or Pointer(live=version)
            if before.live != version or not before.history:
                before.moved(version, reason=reason).write(model)

    def rollback(self, name: str, *, reason: str = "rollback", expected: str | None = None) -> str:
        """Makes the version live that was so before, and returns it.

        Args:
            expected: where the caller thinks that this goes; nothing is changed where another process came first.

        Raises:
            UnknownModel, NoPreviousVersion, CannotStore.
            VersionConflict: it is not the one expected.
        """
        with self._locked(self._model(name)):
            pointer = self._moved_back(name, reason)
            if expected not in (None, pointer.live):
                raise VersionConflict(f"{name} was switched by somebody else at the same moment; look again")
            pointer.write(self._model(name))
            return pointer.live

    def delete(self, name: str, version: str) -> None:
        """Removes a version for good. Raises UnknownModel, UnknownVersion, VersionConflict, VersionIsLive."""
        model = self._model(name)
        self.folder(name, version)
        with self._locked(model):
            folder = self.folder(name, version)
            if version == self.live(name):
                raise VersionIsLive(name, version)
            if folder == model:
                if self._is_single:  # its config.json is what makes the root a model
                    raise InvalidValue(
                        "version", version, f"a version under {VERSIONS_FOLDER}/: {model.name} is the root"
                    )
                _remove_plain(folder)
                return
            # One rename takes it out of sight; what follows may be cut short.
            hidden = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".deleted-"))
            folder.rename(hidden / version)
            shutil.rmtree(hidden, ignore_errors=True)

    # -- inside --------------------------------------------------------------------------------------------------------

    @property
    def _is_single(self) -> bool:
        return (self.root / CONFIG_FILE).is_file()

    def _model(self, name: str) -> Path:
        """The folder of a model that is there: looked up, never put together from what a caller wrote."""
        folders = {path.resolve().name: path for path in checkpoint_folders(self.root)}
        if name not in folders:
            raise UnknownModel(name, list(folders))
        return folders[name]

    def _folders(self, name: str) -> dict[str, Path]:
        """The folder of each version."""
        model = self._model(name)
        plain = _version_of(model)
        folders = {} if plain is None else {plain: model}
        published = model / VERSIONS_FOLDER
        if published.is_dir():
            for folder in published.iterdir():
                if _VERSION.fullmatch(folder.name) and folder.name != plain:
                    folders[folder.name] = folder
        return folders

    def _pointer(self, name: str) -> Pointer | None:
        """With the version that is live in fact, see `live`; None where nothing is."""
        pointer, live = read_pointer(self._model(name)), self.live(name)
        return None if live is None else replace(pointer or Pointer(live=live), live=live)

    def _moved_back(self, name: str, reason: str = "") -> Pointer:
        pointer = self._pointer(name)
        moved = None if pointer is None else pointer.moved_back(self._folders(name), reason=reason)
        if moved is None:
            raise NoPreviousVersion(name)
        return moved

    def _take_in(self, model: Path, folder: Path, lineage: dict[str, Any]) -> str:
        from model.checkpoint import load_checkpoint

        versions = model / VERSIONS_FOLDER
        with _storing(versions):
            _remove_leftovers(versions)
            incoming = Path(tempfile.mkdtemp(dir=versions, prefix=".incoming-"))
        try:
            with _storing(incoming):
                _copy_checkpoint(folder, incoming)
            version = load_checkpoint(incoming).version  # the copy, not what may still change behind our back
            if _version_of(model) == version:
                return version
            target = versions / version
            if target.is_dir() and not _is_sound(target):
                shutil.rmtree(target)
            if not target.is_dir():
                facts = {"format_version": LINEAGE_FORMAT_VERSION, "published_at": round(time.time(), 3), **lineage}
                with _storing(target):
                    write_json(incoming / LINEAGE_FILE, facts)
                    incoming.chmod(0o755)  # mkdtemp keeps it to its owner; a replica may run as another user
                    sync(incoming)
                    incoming.rename(target)
                    sync(versions)
            return version
        except CheckpointError as exc:
            raise CheckpointError(folder / exc.path.name, exc.cause) from exc
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    @contextmanager
    def _locked(self, model: Path) -> Iterator[None]:
        lock = FileLock(model / ".lock", timeout=_LOCK_SECONDS, fallback_to_soft=False, preserve_lock_file=True)
        try:
            lock.acquire()
        except Timeout as exc:
            raise CannotStore(f"{model.name} has been locked by another process for {_LOCK_SECONDS:.0f} s") from exc
        except OSError as exc:
            raise CannotStore(f"the folder of {model.name} cannot be written: {exc.strerror or exc}") from exc
        try:
            with _storing(model):
                yield
        finally:
            lock.release()


@contextmanager
def _storing(folder: Path) -> Iterator[None]:
    """What the operating system refuses becomes an error that names the folder and the cause."""
    try:
        yield
    except OSError as exc:
        raise CannotStore(f"{folder.name} cannot be written: {exc.strerror or exc}") from exc


def _version_of(folder: Path) -> str | None:
    """The version of the checkpoint in a folder, as its config.json says; None where there is none that can be read."""
    try:
        digest = json.loads((folder / CONFIG_FILE).read_bytes())["files"][WEIGHTS_FILE]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return digest[:12] if isinstance(digest, str) and _VERSION.fullmatch(digest[:12]) else None


def _target(version: str, folder: Path) -> Target:
    try:
        stat = (folder / CONFIG_FILE).stat()
    except OSError:
        return Target(version=version, folder=folder, stamp=(0, 0))
    return Target(version=version, folder=folder, stamp=(stat.st_ino, stat.st_mtime_ns))


def _info(folder: Path, version: str, is_live: bool) -> VersionInfo:
    published_at = _read_object(folder / LINEAGE_FILE).get("published_at") or _time_of(folder / CONFIG_FILE)
    weights = folder / WEIGHTS_FILE
    return VersionInfo(
        version=version,
        folder=folder,
        is_live=is_live,
        published_at=float(published_at),
        num_bytes=weights.stat().st_size if weights.is_file() else 0,
        lineage=lineage_of(folder),
    )


def lineage_of(folder: Path) -> dict[str, Any]:
    """Where a checkpoint comes from: its lineage.json, or what training wrote down."""
    lineage = _read_object(folder / LINEAGE_FILE)
    if lineage:
        return {name: value for name, value in lineage.items() if name not in ("format_version", "published_at")}
    metrics = _read_object(folder / "metrics.json")
    names = {"data_sha256": "dataset_sha256", "seed": "seed", "parent": "parent", "preset": "preset", "test": "scores"}
    return {name: metrics[key] for key, name in names.items() if metrics.get(key) is not None}


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none: lineage is told as far as it is known, and blocks nothing."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _time_of(path: Path) -> float:
    try:
        return round(path.stat().st_mtime, 3)
    except OSError:
        return 0.0


def _is_sound(folder: Path) -> bool:
    from model.checkpoint import load_checkpoint

    try:
        load_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def _copy_checkpoint(source: Path, target: Path) -> None:
    """The files that config.json lists, and itself; each is on the disk before the folder gets its name."""
    names = [CONFIG_FILE, *_read_object(source / CONFIG_FILE).get("files", {})]
    for name in names:
        if Path(name).name == name and (source / name).is_file():
            shutil.copyfile(source / name, target / name)
            sync(target / name)


def _remove_leftovers(versions: Path) -> None:
    """Of writers that were killed: we hold the lock, so that nobody is at work on them."""
    for pattern in (".incoming-*", ".deleted-*"):
        for path in versions.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _remove_plain(folder: Path) -> None:
    """config.json first: without it the rest is no checkpoint."""
    names = list(_read_object(folder / CONFIG_FILE).get("files", {}))
    for name in (CONFIG_FILE, *(name for name in names if Path(name).name == name), LINEAGE_FILE):
        (folder / name).unlink(missing_ok=True)
