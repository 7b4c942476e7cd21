"""Hashes of plain data and of files. Identities are made of them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHUNK = 2**20
"""Number of bytes of a file that are read at once."""

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)
"""One encoder for all calls. `json.dumps` would make a new one for each call."""


def digest_of(value: Any) -> str:
    """Hash of plain data. Equal data has an equal hash, for any order of its keys."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """Plain data as the text that is hashed: compact JSON, with sorted names."""
    return _ENCODER.encode(value)


def digest_of_texts(texts: Iterable[str]) -> str:
    """The digest of a list of texts of `canonical`. Thousands of lists share most of their items."""
    return hashlib.sha256(f"[{','.join(texts)}]".encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content. Most files are small, and hashlib's own function fills a large buffer for each."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()
