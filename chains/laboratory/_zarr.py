"""A Zarr store that outlasts interruptions: each block is written whole, and counts when its status is written."""

import asyncio
import collections
import json
import os
import pathlib
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, MemoryStore

from ._blocks import Blocks, blocks_for, is_block
from ._layout import FAILED, TO_DO, Layout, fill_of

if TYPE_CHECKING:
    import xarray

NEW = ".new"  # how the names of files and folders end that are not yet complete


class WholeStore(LocalStore):
    """A folder in which a missing chunk is an error; in Zarr it stands for values that were never written.

    Where the status of points was not written, they are to do.
    """

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        array, _, name = key.rpartition("/")
        if found is None and array != "status" and (name.startswith("c.") or array.endswith("/c") or name == "c"):
            raise FileNotFoundError(f"{self.root / key} is missing")
        return found


class DurableStore(WholeStore):
    """A folder whose files are written under a temporary name and reach the disk before they get their own."""

    def __init__(self, root: pathlib.Path):
        super().__init__(root)
        self._writing, self._closed = threading.Lock(), False
        self._folders: set[pathlib.Path] = set()

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self.write, key, value.to_bytes())

    def write(self, key: str, data: bytes) -> None:
        """Writes a file; `sync` makes its name durable."""
        path = self.root / key
        with self._writing:
            if self._closed:  # by Ctrl-C, which Zarr's own thread does not notice
                raise OSError(f"sweep: {str(self.root)!r} is closed")
            if not path.parent.exists():
                path.parent.mkdir(parents=True)
                self._folders.update(path.parents[:2])
            replace(path, data)
            self._folders.add(path.parent)

    def sync(self) -> None:
        """Makes all files that were written so far durable."""
        while self._folders:
            sync_folder(self._folders.pop())

    def close(self) -> None:
        """Lets a file that is just being written be completed, and no other."""
        with self._writing:
            self._closed = True


def replace(path: pathlib.Path, data: bytes) -> None:
    """Writes a file that is either complete or not there, also after a power failure."""
    new = path.with_name(path.name + NEW)
    try:
        with new.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def sync_folder(folder: pathlib.Path) -> None:
    """Makes the names of the files in a folder durable."""
    if hasattr(os, "O_DIRECTORY"):  # other systems cannot open folders
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def skeleton(layout: Layout, blocks: Blocks, attributes: Mapping[str, str], *flags: str) -> dict[str, bytes]:
    """The files of a store without its blocks; `flags` are `status`, `failed` or both."""
    files: dict[str, Buffer] = {}
    store = MemoryStore(files)
    coords = layout.coords().assign_attrs(attributes)
    coords.to_zarr(store, zarr_format=3, consolidated=False, write_empty_chunks=True)  # a missing chunk is an error
    lead = (1,) * layout.has_variants
    of_flags = {name: (*layout.flags, np.dtype(np.uint8 if name == "status" else bool)) for name in flags}
    for name, (dims, shape, dtype) in {**layout.variables, **of_flags}.items():
        own = shape[len(lead) + len(blocks.shape) :]
        zarr.create_array(
            store,
            name=name,
            shape=shape,
            dtype=dtype,
            chunks=(*lead, *(blocks.shape if name == "failed" else blocks.block), *(max(1, length) for length in own)),
            dimension_names=dims,
            fill_value=fill_of(dtype),
            compressors=Crc32cCodec(),
            chunk_key_encoding={"name": "default", "separator": "."},  # one folder for all chunks
            attributes={**layout.identity} if name == "status" else {},
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that not every reader of Zarr knows consolidated metadata
        zarr.consolidate_metadata(store)
    return {key: value.to_bytes() for key, value in files.items()}


def check_names(layout: Layout) -> None:
    """Raises if there is something in a table that cannot be written, such as a name that Zarr has its own use for."""
    try:
        skeleton(layout, blocks_for(layout.design.shape, 1, 1), layout.described({}), "status")
    except Exception as error:  # whatever Zarr raises
        raise ValueError(
            f"sweep: file must be able to hold the table, got names or types that cannot: {error}"
        ) from error


class Folder:
    """The results of a running sweep, in a folder."""

    def __init__(self, path: pathlib.Path, layout: Layout, blocks: Blocks):
        self.path = path
        self.blocks = blocks
        self._layout = layout
        self._store = DurableStore(path)
        self._arrays = {name: _open_array(self._store, name) for name in (*layout.variables, "status")}

    @classmethod
    def create(cls, path: pathlib.Path, layout: Layout, points: int) -> "Folder":
        """A new one, whose blocks have about so many points."""
        widest = max(np.prod(like.shape, dtype=int) * like.dtype.itemsize for like in layout.metrics.values())
        blocks = blocks_for(layout.design.shape, points, int(widest))
        new = path.with_name(path.name + NEW)
        try:
            store = DurableStore(new)
            for key, data in skeleton(layout, blocks, layout.described({}), "status").items():
                store.write(key, data)
            store.sync()
            new.rename(path)
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return cls(path, layout, blocks)

    @classmethod
    def open(cls, path: pathlib.Path, layout: Layout) -> "Folder":
        """One that an interrupted sweep has left; what is damaged and follows from `layout` is written anew."""
        blocks = repair(path, layout, "status")
        (path / "zarr.json").touch()  # raises if nothing can be written here
        for leftover in path.rglob("*" + NEW):
            leftover.unlink()
        return cls(path, layout, blocks)

    def close(self) -> None:
        """Ends all writing."""
        self._store.close()

    def status(self) -> tuple[np.ndarray, list[str]]:
        """The status of each point of each variant, and what is damaged: the points in it are to do."""
        status, damage = np.zeros((len(self._layout.variants), self._layout.design.size), np.uint8), []
        for variant in range(len(status)):
            for number in range(len(self.blocks)):
                if not (self.path / self._key("status", variant, number)).exists():
                    continue
                name = "status"
                try:
                    found = self._read(name, variant, number)
                    if found.max() > FAILED:
                        raise ValueError("no status")
                    for name in self._layout.variables if found.any() else ():
                        self._read(name, variant, number)
                except Exception as error:  # whatever Zarr raises for bytes that are not what was written
                    damage.append(f"{self._key(name, variant, number)} ({error})")
                else:
                    status[variant, slice(*self.blocks.range(number))] = found
        return status, damage

    def add(
        self, variant: int, indices: np.ndarray, values: Mapping[str, np.ndarray], status: np.ndarray, kept: np.ndarray
    ) -> None:
        """Writes some points: their metrics and `diverged`, and then their status.

        Args:
            variant: Its number.
            indices: The flat indices of the points, in any order.
            values: The metrics and `diverged` of these points.
            status: The status of these points.
            kept: The status of all points of the variant before.
        """
        numbers = self.blocks.of(indices)
        written = []
        for number in np.unique(numbers).tolist():
            start, stop = self.blocks.range(number)
            of_block = np.flatnonzero(numbers == number)
            at = indices[of_block] - start
            whole = len(np.unique(at)) == stop - start or not kept[start:stop].any()
            for name in self._layout.variables:
                _, shape, dtype = self._layout.variables[name]
                if whole:
                    own = shape[len(self._region(variant, number)) :]
                    block = np.full((stop - start, *own), fill_of(dtype))
                else:
                    block = self._intact(name, variant, number)
                block[at] = values[name][of_block]
                self._write(name, variant, number, block)
            flags = kept[start:stop].copy()
            flags[at] = status[of_block]
            written.append((number, flags))
        self._store.sync()
        for number, flags in written:
            self._write("status", variant, number, flags)
        self._store.sync()

    def forget(self, variant: int, status: np.ndarray) -> None:
        """Writes the status of all points of a variant that has any."""
        for number in range(len(self.blocks)):
            if (self.path / self._key("status", variant, number)).exists():
                self._write("status", variant, number, status[slice(*self.blocks.range(number))])
        self._store.sync()

    def pieces(self, status: np.ndarray) -> Iterator[tuple[tuple[slice, ...], dict[str, np.ndarray]]]:
        """All blocks in which there is a point, with their place in the table."""
        for variant in range(len(status)):
            for number in range(len(self.blocks)):
                if status[variant, slice(*self.blocks.range(number))].any():
                    yield (
                        self._region(variant, number),
                        {
                            name: self._shaped(variant, number, self._intact(name, variant, number))
                            for name in self._layout.variables
                        },
                    )

    def finish(self, status: np.ndarray, errors: Mapping[tuple[int, int], str]) -> None:
        """Makes it a finished table: `failed` instead of `status`, and the attributes.

        `status` stays if there are points to do; otherwise `drop_status` removes it once the folder has its name.
        """
        attributes = self._layout.described(errors)
        flags = ("failed", "status") if (status == TO_DO).any() else ("failed",)
        files = skeleton(self._layout, self.blocks, attributes, *flags)
        root = files.pop("zarr.json")
        for key, data in files.items():
            if not (self.path / key).exists():
                self._store.write(key, data)
        for name in flags:  # the status of blocks without any point, too
            array = _open_array(self._store, name)
            array[...] = (status if name == "status" else status == FAILED).reshape(array.shape)
        self._store.write("zarr.json", root)
        self._store.sync()

    def _region(self, variant: int, number: int) -> tuple[slice, ...]:
        return (slice(variant, variant + 1),) * self._layout.has_variants + self.blocks.region(number)

    def _key(self, name: str, variant: int, number: int) -> str:
        region = self._region(variant, number)
        steps = ((1,) * self._layout.has_variants) + self.blocks.block
        array = self._arrays[name]
        at = [part.start // step for part, step in zip(region, steps)] + [0] * (array.ndim - len(region))
        return f"{name}/{array.metadata.encode_chunk_key(tuple(at))}"

    def _read(self, name: str, variant: int, number: int) -> np.ndarray:
        region = self._region(variant, number)
        found = np.array(self._arrays[name][region])
        start, stop = self.blocks.range(number)
        return found.reshape(stop - start, *found.shape[len(region) :])

    def _intact(self, name: str, variant: int, number: int) -> np.ndarray:
        try:
            return self._read(name, variant, number)
        except Exception as error:  # as above
            raise ValueError(
                f"sweep: {str(self.path / self._key(name, variant, number))!r} has been damaged ({error}); call sweep "
                "again to run its points again"
            ) from error

    def _write(self, name: str, variant: int, number: int, values: np.ndarray) -> None:
        self._arrays[name][self._region(variant, number)] = self._shaped(variant, number, values)

    def _shaped(self, variant: int, number: int, values: np.ndarray) -> np.ndarray:
        """Values by point, in the shape that the block has in the table."""
        shape = (part.stop - part.start for part in self._region(variant, number))
        return values.reshape(*shape, *values.shape[1:])


def _open_array(store: DurableStore, name: str) -> zarr.Array:
    """An array that writes chunks of zeros, too: a missing chunk is an error here."""
    return zarr.open_array(store, path=name, mode="r+").with_config({"write_empty_chunks": True})


def drop_status(folder: pathlib.Path) -> None:
    """Removes the status from a table in which there is no point to do."""
    shutil.rmtree(folder / "status", ignore_errors=True)


def repair(path: pathlib.Path, layout: Layout, flag: str) -> Blocks:
    """Writes anew what is damaged in a sweep's folder and follows from `layout`, and warns of it.

    Returns:
        Its blocks.

    Raises:
        ValueError: If it is not a folder of this sweep, or so damaged that this cannot be known.
    """
    texts = {name: _text(path / name / "zarr.json") for name in ("", *layout.variables, flag)}
    if not any(layout.is_of(_attributes(texts[name])) for name in ("", flag)):
        raise ValueError(
            f"sweep: file must be new or hold this sweep, got {str(path)!r}, which holds one with another function, "
            f"other points, names or share, or something else; remove it to start again"
        )
    lead = int(layout.has_variants)
    votes = collections.Counter(filter(None, (_block(text, lead, layout.design.shape) for text in texts.values())))
    if not votes:
        raise ValueError(f"sweep: the files zarr.json in {str(path)!r} are damaged; remove it to start again")
    blocks = Blocks(layout.design.shape, votes.most_common(1)[0][0])
    store, damage = DurableStore(path), []
    for key, data in skeleton(layout, blocks, layout.described({}), flag).items():
        found = (path / key).read_bytes() if (path / key).is_file() else b""
        if found == data:
            continue
        if not _is_as_good(layout, key, found, data):
            damage.append(key)
        store.write(key, data)
    store.sync()
    if damage:
        warnings.warn(f"sweep: {str(path)!r} is damaged: {', '.join(damage)}; written anew", stacklevel=2)
    return blocks


def _text(file: pathlib.Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _attributes(text: str) -> dict[str, Any]:
    """The attributes in the metadata of a folder or an array, as far as they can be read."""
    try:
        return dict(json.loads(text)["attributes"])
    except (ValueError, KeyError, TypeError):
        return {}


def _block(text: str, lead: int, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The blocks that the metadata of an array declares."""
    try:
        block = tuple(json.loads(text)["chunk_grid"]["configuration"]["chunk_shape"][lead:][: len(shape)])
        return block if is_block(block, shape) else None
    except (ValueError, KeyError, TypeError):
        return None


def _is_as_good(layout: Layout, key: str, found: bytes, data: bytes) -> bool:
    """Whether a file differs from the expected one only in what may differ: who wrote it and when, or its spaces."""
    try:
        old, new = json.loads(found), json.loads(data)
        if key == "zarr.json":
            return layout.describes(old["attributes"])
        return old == new
    except (ValueError, KeyError, TypeError):
        return False


def open_folder(path: pathlib.Path, store: type[LocalStore] = WholeStore) -> "xarray.Dataset":
    """The table in a folder, whose values are read when they are used."""
    import xarray

    return xarray.open_zarr(store(path, read_only=True), chunks=None, consolidated=True)
