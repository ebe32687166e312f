"""Bytes on disk: whole or absent, checked, never unpickled. Nothing here knows what they mean."""

from evo_subnets.files.storage import (
    StorageError,
    as_json,
    fingerprint,
    load_state,
    load_tensors,
    read_json,
    save_tensors,
    write_atomically,
    write_json,
)

__all__ = [
    "StorageError",
    "as_json",
    "fingerprint",
    "load_state",
    "load_tensors",
    "read_json",
    "save_tensors",
    "write_atomically",
    "write_json",
]
