"""A distribution as pip leaves it, but for what was built: the metadata by which its entry points are found."""

from collections.abc import Iterable
from pathlib import Path


def write_metadata(folder: Path, name: str, version: str, entry_points: Iterable[tuple[str, str]]) -> None:
    """Write name, version and entry points for zsqbench into a folder, which is to be on the path."""
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (information / "METADATA").write_text(metadata, encoding="utf-8")
    lines = [f"{plugin} = {module}" for plugin, module in entry_points]
    (information / "entry_points.txt").write_text("\n".join(["[zsqbench]", *lines, ""]), encoding="utf-8")
