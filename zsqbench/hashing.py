"""Hashes of plain data and of files, of which identities are made."""

import hashlib
import json
from pathlib import Path
from typing import Any

CHUNK = 2**20
"""Bytes of a file that are read at once."""

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)
"""`json.dumps` makes one of its own for each call."""


def digest_of(value: Any) -> str:
    """Hash of plain data; equal data has an equal hash, whatever the order of its keys."""
    return hashlib.sha256(_ENCODER.encode(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content. Most files of a store are small: hashlib's own function fills a buffer for each."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()
