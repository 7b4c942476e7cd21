"""Where suite files are: a path, or the name of a shipped suite."""

from pathlib import Path

from zsqbench.errors import ZSQBenchError, did_you_mean
from zsqbench.suite.validation import shape
from zsqbench.suite.yamlfile import YamlFile


def shipped_suites() -> dict[str, Path]:
    """The suites that come with zsqbench, by name (`smoke`, `paper/dgh_table2`): in a checkout, or in a wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "suites", package.parent / "suites"):
        if folder.is_dir():
            return {
                str(path.relative_to(folder).with_suffix("").as_posix()): path
                for path in sorted(folder.rglob("*.yaml"))
            }
    return {}


def find_suite(text: str) -> Path:
    """A suite file by path, or a shipped one by its bare name. Raises ZSQBenchError where there is none."""
    path = Path(text)
    if path.is_file():
        return path
    shipped = shipped_suites()
    if text in shipped:
        return shipped[text]
    if path.is_dir():
        raise ZSQBenchError(f"suite {text} is a folder; name a YAML file in it")
    close = did_you_mean(text, shipped) or did_you_mean(path.stem, shipped) or ";"
    raise ZSQBenchError(f"there is no suite file {text}{close} shipped: {', '.join(shipped)}")


def suite_plugins(path: Path) -> list[Path]:
    """Only the plugin files that a suite file names, as absolute paths: all that a kept network needs of it."""
    source = YamlFile(path)
    named = source.data.get("plugins") if isinstance(source.data, dict) else None
    return [(path.parent / str(file)).resolve() for file in (named if isinstance(named, list) else ())]


def suite_name(path: Path) -> str:
    """Only the name in a suite file: all that a leaderboard needs of it."""
    source = YamlFile(path)
    name = source.data.get("name") if isinstance(source.data, dict) else None
    if not isinstance(name, str):
        raise ZSQBenchError(f"{path}: expected a suite with a name, got {shape(name)}")
    return name
