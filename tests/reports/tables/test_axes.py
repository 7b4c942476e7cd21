import pytest
from rows import method, row

from zsqbench.reports.tables.axes import Name, Row, names_of


def words(*results):
    return [name.words for name in names_of(map(Row.of, results)).values()]


def test_a_method_is_called_by_its_generator_and_its_quantizer_or_by_the_latter_alone():
    assert words(row(), row(generator=None)) == ["zeroq with rtn", "rtn"]


def test_the_seeds_of_a_method_have_one_name():
    assert words(row(seed=0), row(seed=1)) == ["zeroq with rtn"]


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"settings": {"precision": "double"}}, Name("zeroq", "rtn, precision double")),
        ({"methods": {"quantizer": method("rtn", bits=4)}}, Name("zeroq", "rtn (4 bits)")),
        ({"methods": {"generator": method("zeroq", images=64)}}, Name("zeroq (64 images)", "rtn")),
        ({"data_free": False}, Name("zeroq (real data, not data-free)", "rtn")),
    ],
)
def test_methods_that_share_their_names_are_told_apart_by_all_in_which_methods_differ(other, name):
    plain, changed = row(), row(**other)
    assert names_of(map(Row.of, [plain, changed])) == {Row.of(plain): Name("zeroq", "rtn"), Row.of(changed): name}
