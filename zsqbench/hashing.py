"""Hashes of plain data and of files, of which identities are made."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHUNK = 2**20
"""Bytes of a file that are read at once."""

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)
"""`json.dumps` makes one of its own for each call."""


def digest_of(value: Any) -> str:
    """Hash of plain data; equal data has an equal hash, whatever the order of its keys."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """Plain data as the text that is hashed: compact JSON, with sorted names."""
    return _ENCODER.encode(value)


def digest_of_texts(texts: Iterable[str]) -> str:
    """The digest of a list of such texts: thousands of lists share most of their items."""
    return hashlib.sha256(f"[{','.join(texts)}]".encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content. Most files of a store are small: hashlib's own function fills a buffer for each."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()
