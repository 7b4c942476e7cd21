"""Find suite files by path or by the name of a shipped suite, and read them before their names are resolved."""

from collections.abc import Sequence
from pathlib import Path

from zsqbench.errors import ZSQBenchError, did_you_mean
from zsqbench.methods import Settings
from zsqbench.suite.schema import SuiteFile
from zsqbench.suite.sweeps import expand
from zsqbench.suite.validation import parse, shape
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
    """A suite file by path, or a shipped suite by its name. Raises ZSQBenchError if there is none."""
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


def suites_of_table(source: str, table: str) -> list[str]:
    """The names of the shipped suites that ask for a table of a source of published values."""
    found = []
    for name, path in shipped_suites().items():
        asked = parse_suite(path)[1].published
        if any(each.source == source and table in map(str, each.table) for each in asked):
            found.append(name)
    return found


def parse_suite(path: Path, overrides: Sequence[str] = ()) -> tuple[YamlFile, SuiteFile]:
    """The keys of a suite file, after overrides by texts `a.b=value`, with its sweeps expanded."""
    source = YamlFile(path)
    if not isinstance(source.data, dict):
        raise ZSQBenchError(f"{path}: expected a suite with keys such as name and matrix, got {shape(source.data)}")
    for override in overrides:
        source.override(override)
    return source, expand(source, parse(SuiteFile, source.data, source, ()))


def settings_of(source: YamlFile, file: SuiteFile, block: int) -> Settings:
    """The settings of all cells of a block of the matrix: those of the suite, with the changes of the block."""
    suite = parse(Settings, file.settings, source, ("settings",)).model_dump()
    return parse(Settings, suite | file.matrix[block].settings, source, ("matrix", block, "settings"))


def suite_plugins(path: Path) -> list[Path]:
    """The plugin files that a suite file names, as absolute paths. A kept network needs nothing else of the file."""
    source = YamlFile(path)
    named = source.data.get("plugins") if isinstance(source.data, dict) else None
    return [(path.parent / str(file)).resolve() for file in (named if isinstance(named, list) else ())]


def suite_name(path: Path) -> str:
    """The name in a suite file. A leaderboard needs nothing else of the file."""
    source = YamlFile(path)
    name = source.data.get("name") if isinstance(source.data, dict) else None
    if not isinstance(name, str):
        raise ZSQBenchError(f"{path}: expected a suite with a name, got {shape(name)}")
    return name
