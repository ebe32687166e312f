"""Bytes on disk: whole or absent, checked, never unpickled. Nothing here knows what they mean.

What cannot be read raises a `StorageError`, whose one line names the file and says what is wrong.
"""

from evo_subnets.files.names import parameters_of, plain_names, state_of, unwrapped
from evo_subnets.files.records import LARGEST_JSON, as_json, read_json, write_json
from evo_subnets.files.tensors import fingerprint, load_state, load_tensors, save_tensors
from evo_subnets.files.writing import StorageError, remove, remove_leftovers, write_atomically

__all__ = [
    "LARGEST_JSON", "StorageError", "as_json", "fingerprint", "load_state", "load_tensors",
    "parameters_of", "plain_names", "read_json", "remove", "remove_leftovers", "save_tensors",
    "state_of", "unwrapped", "write_atomically", "write_json",
]  # fmt: skip
