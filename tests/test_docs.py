"""What the documents say is true of the code: commands, hooks, keys, suites, links, and the whole tutorial."""

import inspect
import json
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from distributions import write_metadata
from written import run_tests

from zsqbench import hookspecs, versions
from zsqbench.cli import cli
from zsqbench.export.options import ExportOptions
from zsqbench.hookspecs import PROJECT
from zsqbench.methods import ModelSpec, Settings
from zsqbench.plugins import load_plugins
from zsqbench.scheme import PLACEMENTS, Placement
from zsqbench.suite import load_suite, shipped_suites
from zsqbench.suite.schema import Block, Exclusion, Reference, SuiteFile
from zsqbench.templates import write_template

ROOT = Path(__file__).resolve().parent.parent
OF_CONTRIBUTORS = [ROOT / f"{name}.md" for name in ("AGENTS", "CODE_OF_CONDUCT", "CONTRIBUTING", "SECURITY")]
PAGES = [page for folder in ("docs", "examples") for page in sorted((ROOT / folder).rglob("*.md"))]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *OF_CONTRIBUTORS, *PAGES]
TUTORIAL, SUITES, SCHEMES, HOOKS = (ROOT / "docs" / f"{name}.md" for name in ("tutorial", "suites", "schemes", "hooks"))
YOUR_METHOD = ROOT / "docs" / "your-method.md"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def text_of(document):
    return document.read_text(encoding="utf-8")


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(document), re.MULTILINE | re.DOTALL)


def prose(document):
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)


def anchors(document):
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_every_link_leads_somewhere(document):
    for link in re.findall(r"\]\(([^)]+)\)", prose(document)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def parse(words):
    """Let click parse a command without running it; a word that stands for a command is a usage error."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        name, *words = words
        assert name in command.commands, f"no command {name!r}"
        command = command.commands[name]
    if words:
        command.make_context(str(command.name), list(words)).close()


def command_lines(document):
    """The commands that start zsqbench, alone or at the end of a chain."""
    lines = [line for block in blocks(document, "console") for line in block.splitlines()]
    commands = [command for line in lines for command in line.split(" && ")]
    commands += re.findall(r"`(zsqbench [^`]+)`", prose(document))
    return [command for command in commands if re.match(r"(\S*/)?zsqbench( |$)", command)]


@each_document
def test_every_command_line_is_one_that_the_command_line_takes(document):
    for line in command_lines(document):
        _, *words = shlex.split(line)
        try:
            parse(words)
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")
        for word in words:
            assert not word.startswith("suites/") or (ROOT / word).is_file(), line


def test_a_wrong_command_line_would_be_found():
    with pytest.raises(click.UsageError):
        parse(["run", "smoke", "--worker-count", "2"])
    with pytest.raises(AssertionError, match="no command"):
        parse(["cache", "list"])


def test_the_documented_hooks_are_those_that_there_are():
    there = {
        name: list(inspect.signature(hook).parameters)
        for name, hook in vars(hookspecs).items()
        if hasattr(hook, f"{PROJECT}_spec")
    }
    headings = re.findall(r"^### `(\w+)\((.*)\)`$", text_of(HOOKS), re.MULTILINE)
    assert {name: parameters.split(", ") if parameters else [] for name, parameters in headings} == there


@pytest.mark.parametrize(
    "model",
    [SuiteFile, Block, Exclusion, Reference, ModelSpec, Settings, ExportOptions],
    ids=lambda model: model.__name__,
)
def test_every_key_of_a_suite_is_explained(model):
    missing = [name for name in model.model_fields if f"`{name}`" not in text_of(SUITES)]
    assert not missing


def test_every_shipped_method_task_option_and_suite_is_named():
    catalog = load_plugins()
    names = [name for kind, name in catalog.provided if kind != "engine"]
    names += list(catalog.find("task", "classification").method.model_fields)
    names += [*PLACEMENTS, *shipped_suites()]
    missing = [name for name in names if f"`{name}`" not in text_of(SUITES)]
    assert not missing


def test_the_tables_of_roles_say_what_each_scheme_does():
    said: dict[str, dict[str, str]] = {name: {} for name in PLACEMENTS}
    heads = re.findall(r"^\| (?:role|position|field) \| \w+ \| (.*) \|$", text_of(SCHEMES), re.MULTILINE)
    assert {tuple(re.findall(r"`(\w+)`", head)) for head in heads} == {tuple(PLACEMENTS)}
    for field, values in re.findall(r"^\| `(\w+)` \| .*?((?: \| [\w-]+)+) \|$", text_of(SCHEMES), re.MULTILINE):
        cells = values.split(" | ")[1:]
        if field in Placement.model_fields:
            for name, value in zip(PLACEMENTS, cells[-len(PLACEMENTS) :], strict=True):
                said[name][field] = value
    shown = {None: "-", True: "true", False: "false"}
    assert said == {
        name: {
            field: shown.get(value) or str(value) if isinstance(value, bool | None) else str(value)
            for field, value in vars(placement).items()
            if field != "tensors"
        }
        for name, placement in PLACEMENTS.items()
    }


def test_the_lists_of_schemes_are_complete_and_in_order():
    described = re.findall(r"^\| `(\w+)` \| [^|]* \|$", text_of(SCHEMES), re.MULTILINE)
    assert described == list(PLACEMENTS)


def test_what_the_scheme_command_prints_is_shown_as_it_is(bench):
    commands = [shlex.split(line)[1:] for line in command_lines(SCHEMES) if line.startswith("zsqbench scheme ")]
    compared, listed = blocks(SCHEMES, "text")
    assert bench.zsqbench(*commands[0]).out == compared
    assert bench.zsqbench(*commands[1]).out.endswith(f"\n\n{listed}")


MATRIX = {"task": "digits", "model": "resnet20", "generator": "noise", "quantizer": "rtn", "scheme": "hw/w4a4"}
YAML_BLOCKS = [
    pytest.param(block, id=f"{document.name}-{index}")
    for document in DOCUMENTS
    for index, block in enumerate(blocks(document, "yaml"))
]


@pytest.mark.parametrize("block", YAML_BLOCKS)
def test_every_yaml_block_is_a_suite_or_a_part_of_one(block, tmp_path):
    for name in ("my_net.py", "my_net.safetensors", "images.safetensors", "models/resnet20_cifar10.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write_tutorial(tmp_path)
    write_template("generator", "bn_match", tmp_path)
    given = yaml.safe_load(block)
    tasks = {"digits": {"method": "classification", "data": "digits"}} | given.get("tasks", {})
    whole = {"name": "part", **given, "tasks": tasks, "matrix": [MATRIX]}
    file = tmp_path / "suite.yaml"
    file.write_text(json.dumps(given if "matrix" in given else whole), encoding="utf-8")
    load_suite(file)


def write_tutorial(folder):
    """The files of the tutorial, under the names that it gives them."""
    method, test = blocks(TUTORIAL, "python")
    files = {"my_method.py": method, "test_my_method.py": test, "my_suite.yaml": blocks(TUTORIAL, "yaml")[0]}
    for name, content in files.items():
        assert f"`{name}`" in text_of(TUTORIAL)
        (folder / name).write_text(content, encoding="utf-8")


def test_the_tutorial_plans_the_cells_and_steps_that_it_says(bench):
    write_tutorial(bench.folder)
    said = bench.zsqbench("plan", bench.folder / "my_suite.yaml", "--format", "json", *bench.places())
    plan = json.loads(said.out)
    one_by_one = sum(len(cell["steps"]) + len(cell["background"]) for cell in plan["cells"])
    assert f"{len(plan['cells'])} cells, which need {len(plan['steps'])} steps and not {one_by_one}" in text_of(
        TUTORIAL
    )


def test_the_tutorial_shows_the_options_as_they_are_listed(bench):
    write_tutorial(bench.folder)
    said = bench.zsqbench("plugins", "list", "batch_match", "--plugin", bench.folder / "my_method.py")
    _, *listed = said.out.splitlines()
    (shown,) = (block for block in blocks(TUTORIAL, "text") if block.startswith("generator batch_match"))
    assert shown.splitlines()[1:] == listed


def test_the_new_methods_of_the_tutorial_run_in_its_suite(bench):
    write_tutorial(bench.folder)
    short = ["matrix.0.seed=0", "generators.batch_match={images: 8, iterations: 3}"]
    options = [part for override in short for part in ("--set", override)]
    options += ["-k", "batch_match and w4a4", "--workers", "0", "--no-plugin", "mlflow"]
    said = bench.zsqbench("run", bench.folder / "my_suite.yaml", *bench.places(), *options)
    assert said.code == 0, said.err
    rows = re.findall(r"^\| (\w+) .*\| (\w+) +\| +\**[\d.]+ ", said.out, re.MULTILINE)
    assert rows == [("batch_match", "rtn"), ("batch_match", "percentile")]


@pytest.mark.slow("it checks a method in full; test_templates does the same with another")
@pytest.mark.parametrize("brief", [True, pytest.param(False, marks=pytest.mark.slow("it checks on all networks"))])
def test_the_test_of_the_tutorial_passes(tmp_path, monkeypatch, request, brief):
    if brief:
        request.getfixturevalue("briefly")
    write_tutorial(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_tests(tmp_path / "test_my_method.py") == 2


def test_the_package_of_the_tutorial_is_found(tmp_path, python):
    """Installed as pip would, but for building: the module, and the metadata with its entry points."""
    write_tutorial(tmp_path)
    (package,) = (tomllib.loads(block) for block in blocks(TUTORIAL, "toml"))
    project, modules = package["project"], package["tool"]["setuptools"]["py-modules"]
    assert all((tmp_path / f"{module}.py").is_file() for module in modules)
    write_metadata(tmp_path, project["name"], project["version"], project["entry-points"][PROJECT].items())
    code = "from zsqbench.cli import main; main(['plugins', 'list', 'my_method'])"
    done = python(code, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "generator batch_match  (version 1, zsqbench-my-method 0.1.0)" in done.stdout, done.stderr


def write_your_method(folder):
    """What docs/your-method.md has its reader write."""
    method, _ = write_template("generator", "bn_match", folder)
    (suite,) = blocks(YOUR_METHOD, "yaml")
    (folder / "bn_match.yaml").write_text(suite, encoding="utf-8")
    return method


def test_the_file_of_the_short_way_is_the_one_that_is_written(bench):
    (shown,) = blocks(YOUR_METHOD, "python")
    assert write_your_method(bench.folder).read_text(encoding="utf-8") == shown


@pytest.mark.slow("it checks two methods in full")
def test_what_the_check_prints_is_shown_as_it_is(bench, request):
    shown, failed, told = blocks(YOUR_METHOD, "text")
    method = write_your_method(bench.folder)
    said = bench.zsqbench("plugins", "check", method)
    *lines, _ = said.out.splitlines()
    assert (said.code, lines) == (0, shown.splitlines())
    request.getfixturevalue("briefly")  # what is shown of failures is of the first network
    sound = method.read_text(encoding="utf-8")
    method.write_text(sound.replace("ctx.randn", "torch.randn"), encoding="utf-8")
    said = bench.zsqbench("plugins", "check", method)
    assert (said.code, [line for line in said.out.splitlines() if "FAILED  " in line]) == (1, failed.splitlines())
    method.write_text(sound.replace("clamp_(low, high)", "clamp_(low, hihg)"), encoding="utf-8")
    said = bench.zsqbench("plugins", "check", method, "--verbose")
    assert (said.code, told.replace("/home/you", str(bench.folder)) in said.out) == (1, True), said.out


def test_the_new_method_of_the_short_way_runs_in_its_suite(bench):
    write_your_method(bench.folder)
    short = ["matrix.0.seed=0", "generators.bn_match={images: 8, iterations: 3}"]
    options = [part for override in short for part in ("--set", override)]
    options += ["-k", "bn_match and w4a4", "--workers", "0", "--no-plugin", "mlflow"]
    said = bench.zsqbench("run", bench.folder / "bn_match.yaml", *bench.places(), *options)
    assert said.code == 0, said.err
    assert re.findall(r"^\| (\w+) .*\| rtn ", said.out, re.MULTILINE) == ["bn_match"]


MEASURED = {"my_suite": (TUTORIAL, write_tutorial), "bn_match": (YOUR_METHOD, write_your_method)}
"""Suites that a reader of the documents writes and runs: the document with the table, and a writer of the files."""
ROWS = ROOT / "docs" / "results"
"""Rows of these suites, of which the tables are made."""
each_measured = pytest.mark.parametrize("suite", MEASURED)


def shown_table(document, suite):
    (shown,) = re.findall(rf"<!-- table: {suite} -->\n(.*?)<!-- end -->", text_of(document), re.DOTALL)
    return shown.strip()


def printed_table(bench, suite, results):
    said = bench.zsqbench("leaderboard", bench.folder / f"{suite}.yaml", "--results", results)
    return said.out.split("\n\n", 2)[2].strip()


@each_measured
def test_a_table_of_a_document_is_made_of_kept_rows(bench, suite):
    """The rows are of the cells as they are now: versions, sources and options of methods are in their definitions."""
    document, write = MEASURED[suite]
    write(bench.folder)
    current = load_suite(bench.folder / f"{suite}.yaml")
    kept = {row["cell"]: row["definition"] for row in map(json.loads, text_of(ROWS / f"{suite}.jsonl").splitlines())}
    again = f"measure it: pytest tests/test_docs.py -m slow -k {suite} --refresh-tables"
    assert kept == {cell.name: current.definition(cell) for cell in current.cells}, again
    assert shown_table(document, suite) == printed_table(bench, suite, ROWS)


@pytest.mark.slow
@pytest.mark.timeout(600)
@each_measured
def test_a_table_of_a_document_is_measured(bench, suite, request):
    """With --refresh-tables, keep these rows, and show their table."""
    document, write = MEASURED[suite]
    write(bench.folder)
    said = bench.zsqbench("run", bench.folder / f"{suite}.yaml", *bench.places(), "--no-plugin", "mlflow")
    assert said.code == 0, said.err
    if request.config.getoption("--refresh-tables"):
        rows = text_of(bench.results / f"{suite}.jsonl").replace(str(bench.folder), "/home/you")
        (ROWS / f"{suite}.jsonl").write_text(rows, encoding="utf-8")
        shown = shown_table(document, suite)
        document.write_text(text_of(document).replace(shown, printed_table(bench, suite, ROWS)), encoding="utf-8")

    def top1(folder):
        rows = map(json.loads, text_of(folder / f"{suite}.jsonl").splitlines())
        return {row["cell"]: row["metrics"]["top1"] for row in rows}

    assert top1(bench.results) == pytest.approx(top1(ROWS), abs=1.0)  # processors differ in the last bit


def test_the_example_of_an_observer_is_called(bench):
    (example,) = blocks(HOOKS, "python")
    observer = bench.write("observer.py", example.replace("> 10", "> -1000"))
    said = bench.run("--plugin", observer)
    assert said.out.count(" points\n") == 2, said


def test_the_table_in_the_readme_is_the_measured_one(bench):
    found = re.search(r'<!-- table: (\w+) -k "(.+)" -->\n(.*?)<!-- end -->', text_of(ROOT / "README.md"), re.DOTALL)
    assert found
    suite, expression, table = found.groups()
    assert f'zsqbench leaderboard {suite} -k "{expression}"' in text_of(ROOT / "README.md")
    said = bench.zsqbench("leaderboard", suite, "-k", expression, "--results", ROOT / "results")
    suite_title, title, measured = said.out.split("\n\n", 2)
    assert (suite_title, title) == (f"# {suite}", "## digits: top-1 accuracy in percent")
    assert table.strip() == measured.strip(), f"put what that command prints between the marks of {suite}"
    assert 3 <= table.count("\n|") <= 10  # a heading, a line below it, and at most eight methods


def test_the_picture_in_the_readme_shows_what_was_measured(bench):
    """Marks are compared, by the words that describe them: how a line is drawn may differ between releases."""
    readme = " ".join(text_of(ROOT / "README.md").split())
    (shown,) = (ROOT / path for path in re.findall(r"!\[.+\]\((docs/images/\S+)\)", readme))
    (command,) = re.findall(r"`zsqbench (figure .+?)`", readme)
    drawn = bench.folder / "drawn.svg"
    assert bench.zsqbench(*command.split(), "--results", ROOT / "results", "-o", drawn).code == 0
    marks = sorted(re.findall('aria-label="([^"]+: [^"]+)"', text_of(drawn)))
    assert len(marks) > 15
    assert marks == sorted(re.findall('aria-label="([^"]+: [^"]+)"', text_of(shown)))


def test_what_the_comparison_prints_is_shown_as_it_is(bench):
    document = ROOT / "docs" / "statistics.md"
    (command, *_) = (shlex.split(line)[1:] for line in command_lines(document) if line.startswith("zsqbench compare"))
    said = bench.zsqbench(*command, "--results", ROOT / "results", "--home", bench.home)
    assert said.out.replace(str(bench.home), ".zsqbench") in blocks(document, "text")


def test_the_fields_of_a_comparison_are_explained(bench):
    sides = ["hw_friendly", "dgh:rtn:pot", "real:rtn:pot"]
    said = bench.zsqbench("compare", *sides, "--format", "json", "--results", ROOT / "results", "--home", bench.home)
    record = json.loads(said.out)[0]
    explained = text_of(ROOT / "docs" / "statistics.md")
    assert not [name for name in (*record, *record["a"], *record["flips"][0]) if f"`{name}`" not in explained]


def test_the_long_table_is_that_of_the_committed_rows(bench):
    said = bench.zsqbench("leaderboard", "hw_friendly", "--results", ROOT / "results")
    assert said.out.strip() == text_of(ROOT / "results" / "hw_friendly.md").strip()


def test_the_layers_in_the_architecture_are_those_that_are_enforced():
    contract = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    layers = "\n".join(contract["layers"]).replace("zsqbench.", "")
    assert f"{layers}\n" in blocks(ROOT / "docs" / "architecture.md", "text")


def test_each_promise_of_reliability_names_tests_that_there_are():
    promises = text_of(ROOT / "docs" / "reliability.md").partition("## Promises")[2].partition("\n## ")[0]
    paragraphs = [text for text in promises.split("\n\n") if text.strip()]
    assert all(text.lstrip().startswith("**") for text in paragraphs)
    for text in paragraphs:
        named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", text)
        assert named, text
        for file, name in named:
            assert f"\ndef {name}(" in text_of(ROOT / file), f"{file}::{name}"


def test_version_and_license_are_the_same_everywhere():
    project = PYPROJECT["project"]
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert str(citation["version"]) == project["version"]
    assert citation["license"] == project["license"]
    assert text_of(ROOT / "LICENSE").startswith(f"{project['license']} License")
    latest = re.search(r"^## \[(.+?)\]", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert latest
    assert latest[1] == project["version"]


each_for_contributors = pytest.mark.parametrize("document", OF_CONTRIBUTORS, ids=lambda path: path.name)
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
MATRIX_OF_CI = WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["include"]


@each_for_contributors
def test_files_that_contributors_are_told_of_are_there(document):
    """Names in capitals stand for the reader's own."""
    paths = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|\w+\.(?:ini|md|py|toml))`", text_of(document))
    assert not [path for path in paths if not re.search("NAME|SOURCE", path) and not (ROOT / path).exists()]


@each_document
def test_lines_wrap(document):
    """But for tables, code, a single long word such as the name of a test, and a page that a script writes."""
    text = re.sub("<!-- table: .*?<!-- end -->", "", prose(document), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert document.name == "networks.md" or not [line for line in long if max(map(len, line.split())) < 80]


@each_for_contributors
def test_environments_that_contributors_are_told_of_are_those_of_tox(document):
    there = re.findall(r"^\[testenv:(\w+)\]$", (ROOT / "tox.ini").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"tox -e (\w+)", text_of(document))) <= set(there)


def test_contributors_are_told_of_each_version_that_is_raised_by_hand():
    named = re.findall(r"`(\w+_VERSION)` \|$", text_of(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    assert named == [name for name in vars(versions) if name.endswith("_VERSION")]


def lowest(package):
    """The lower bound of a dependency, as pyproject.toml has it."""
    (bound,) = (
        line.partition(">=")[2] for line in PYPROJECT["project"]["dependencies"] if line.startswith(f"{package}>=")
    )
    return bound


def test_ci_runs_each_python_with_the_newest_torch_and_an_old_one():
    newest = [each["python"] for each in MATRIX_OF_CI if "torch" not in each]
    assert [each["python"] for each in MATRIX_OF_CI if "torch" in each] == newest
    assert f">={newest[0]}" == PYPROJECT["project"]["requires-python"]
    first, last = (int(version.partition(".")[2]) for version in (newest[0], newest[-1]))
    assert newest == [f"3.{minor}" for minor in range(first, last + 1)]
    assert f"from {newest[0]} to {newest[-1]}" in text_of(ROOT / "CONTRIBUTING.md")


def test_the_oldest_torch_that_ci_runs_is_the_lower_bound():
    oldest = MATRIX_OF_CI[0]
    assert (oldest["torch"], oldest["torchvision"]) == (f"=={lowest('torch')}.0", f"=={lowest('torchvision')}.0")


def test_each_environment_of_ci_is_one_of_tox():
    there = (ROOT / "tox.ini").read_text(encoding="utf-8")
    assert all(f"[testenv:{each['tox']}]" in there for each in MATRIX_OF_CI)


def test_the_hooks_before_a_commit_have_the_linter_of_the_group():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [hook["additional_dependencies"] for hook in repository["hooks"]] == [
        PYPROJECT["dependency-groups"]["lint"]
    ] * 2
    lint = (ROOT / "tox.ini").read_text(encoding="utf-8").partition("[testenv:lint]")[2].partition("[testenv:tests]")[0]
    assert all(hook["name"] in lint for hook in repository["hooks"])
