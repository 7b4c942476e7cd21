import pytest
from rows import result

from zsqbench.errors import ZSQBenchError
from zsqbench.methods import Settings
from zsqbench.suite import DeclaredCells, load_suite, settings_said, shipped_suites

SUITE = """
name: s
plugins: [a_file_that_is_not_there.py]
settings: {threads: 2}
matrix:
  - {task: t, model: [m, n], generator: [g, none], quantizer: q, scheme: [hw/w4a4, float], seed: [0, 1]}
  - {task: t, model: m, quantizer: other, scheme: hw/w2a2, settings: {precision: bf16, threads: 1}}
exclude: [{model: n, because: it is one all the same}]
"""

OF_SUITE = {"settings": {"threads": 2}}
OF_BLOCK = {"settings": {"precision": "bf16"}, "quantizer": "other", "scheme": "hw/w2a2"}


def row(**changes):
    """A row that is called as its fields say."""
    made = result(**changes)
    axes = [made.task, made.model, made.generator or "none", made.quantizer, made.scheme]
    settings = Settings.model_validate(made.settings).model_dump(mode="json", exclude_defaults=True)
    parts = [
        *axes,
        "-" if made.seed is None else str(made.seed),
        *(f"{key}={value}" for key, value in settings.items()),
    ]
    return made.model_copy(update={"cell": ":".join(parts)})


@pytest.fixture
def declared(tmp_path):
    (tmp_path / "s.yaml").write_text(SUITE)
    return lambda *overrides: DeclaredCells.read(tmp_path / "s.yaml", overrides)


@pytest.mark.parametrize(
    "changes",
    [
        OF_SUITE,
        OF_SUITE | {"generator": "g", "seed": 1},
        OF_SUITE | {"model": "n", "scheme": "float", "seed": 0},
        OF_SUITE | {"settings": {"threads": 2, "precision": "fp32"}},
        OF_BLOCK,
        OF_BLOCK | {"seed": 0},
    ],
)
def test_a_suite_has_the_cells_of_its_blocks_with_and_without_a_seed(declared, changes):
    assert declared().have(row(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        OF_SUITE | {"task": "u"},
        OF_SUITE | {"model": "o"},
        OF_SUITE | {"generator": "h"},
        OF_SUITE | {"quantizer": "other"},
        OF_SUITE | {"scheme": "hw/w2a2"},
        OF_SUITE | {"seed": 2},
        {},
        {"settings": {"threads": 2, "layout": "channels_last"}},
        OF_BLOCK | {"generator": "g"},
        OF_BLOCK | {"seed": 1},
        OF_BLOCK | {"settings": {"precision": "bf16", "threads": 2}},
    ],
)
def test_a_suite_has_no_other_cell(declared, changes):
    assert not declared().have(row(**changes))


@pytest.mark.parametrize(
    "changes", [{"cell": "t:m:none:q:hw/w4a4:7:threads=2"}, {"settings": {"threads": 0}}, {"settings": {"of_2030": 1}}]
)
def test_a_row_that_contradicts_itself_tells_of_no_cell(changes):
    assert settings_said(row(**OF_SUITE).model_copy(update=changes)) is None


def test_an_override_changes_which_cells_a_suite_has(declared):
    seven = row(**OF_SUITE, seed=7)
    assert (declared().have(seven), declared("matrix.0.seed=7").have(seven)) == (False, True)


def test_a_suite_that_cannot_be_meant_is_refused_with_its_place(declared, tmp_path):
    (tmp_path / "s.yaml").write_text(SUITE.replace("seed:", "sed:"))
    with pytest.raises(ZSQBenchError, match=r"s.yaml:6: unknown key 'sed' in|s.yaml:6: unknown key 'sed'"):
        declared()


@pytest.mark.parametrize("name", ["hw_friendly", "settings"])
def test_a_shipped_suite_declares_each_of_its_cells_and_not_one_with_another_seed(name, tmp_path):
    path = shipped_suites()[name]
    declared = DeclaredCells.read(path)
    for cell in load_suite(path, data_root=tmp_path).cells:
        axes = {axis: getattr(cell, axis) for axis in ("task", "model", "generator", "quantizer", "scheme", "seed")}
        made = row(**axes, settings=cell.settings.model_dump(mode="json"))
        assert (made.cell, declared.have(made)) == (cell.name, True)
        assert not declared.have(row(**axes | {"seed": 99}, settings=cell.settings.model_dump(mode="json")))


def test_cells_without_a_row_are_known_with_and_without_a_seed(declared):
    names = {cell.name for cell in declared().without([])}
    assert len(names) == 2 * 2 * 2 * 2 + 1
    rows = [row(**OF_SUITE), row(**OF_SUITE, generator="g", seed=1), row(**OF_BLOCK, seed=0)]
    left = [cell.name for cell in declared().without({each.cell for each in rows})]
    gone = {"t:m:none:q:hw/w4a4:0:threads=2", "t:m:none:q:hw/w4a4:1:threads=2", "t:m:g:q:hw/w4a4:1:threads=2"}
    assert left == sorted(names - gone - {rows[2].cell})
