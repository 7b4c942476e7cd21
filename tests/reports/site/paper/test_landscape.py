import pytest

from zsqbench.execution.landscape import Surroundings
from zsqbench.quant.landscape import Landscape, Spectrum
from zsqbench.reports.site.paper.landscape import landscape

WHERE = "digits resnet20"
CELLS = [f"digits:resnet20:hast:{quantizer}:hast/w3a3:0" for quantizer in ("ste-epochs-1", "ste-epochs-4")]


def around(*terms, has_labels=True):
    spectrum = Spectrum([-1.0, 0.0, 12.345678], [1e-9, 2.0, 0.5], -0.5, 12.0)
    cosines = {("CE", "KL"): [-0.5, -0.123456]}
    return Surroundings(Landscape(cosines, dict.fromkeys(terms, spectrum)), has_labels)


def test_batches_densities_and_largest_eigenvalues_are_rows_of_the_cells_in_their_order():
    figure = landscape(dict.fromkeys(CELLS, around("CE", "KL", "FA")), WHERE)
    records = figure.columns.records()
    assert [*dict.fromkeys(each["cell"] for each in records)] == ["ste-epochs-1", "ste-epochs-4"]
    first = [tuple(each.values()) for each in records if each["cell"] == "ste-epochs-1" and "FA" not in each["terms"]]
    density = [(-1.0, 2e-6), (0.0, 2.0), (12.35, 0.5)]  # never below a millionth of the highest
    assert first == [
        ("cosine", "ste-epochs-1", "CE and KL", -0.5, None),
        ("cosine", "ste-epochs-1", "CE and KL", -0.1235, None),
        *(("density", "ste-epochs-1", "CE", *point) for point in density),
        ("largest", "ste-epochs-1", "CE", 12.0, 2e-6),
        *(("density", "ste-epochs-1", "KL", *point) for point in density),
        ("largest", "ste-epochs-1", "KL", 12.0, 2e-6),
    ]
    assert figure.name == "landscape digits resnet20"
    assert figure.chart.title == f"{WHERE}: cosines of gradients of loss terms, and eigenvalues of their Hessians"


@pytest.mark.parametrize(
    ("cells", "ending"),
    [
        (
            {CELLS[0]: around("CE", "KL", has_labels=False)},
            "; CE is towards the float network's decisions; no FA: the network has no layers to align",
        ),
        (
            {CELLS[0]: around("CE", "KL", "FA", has_labels=False), CELLS[1]: around("CE", "KL", "FA")},
            "; CE is towards the float network's decisions (ste-epochs-1)",
        ),
    ],
)
def test_the_title_says_what_labels_are_and_what_is_missing(cells, ending):
    assert landscape(cells, WHERE).chart.title.endswith(f"Hessians{ending}")


def test_the_only_cell_is_called_by_its_methods():
    figure = landscape({CELLS[0]: around("CE", "KL", "FA")}, WHERE)
    assert {each["cell"] for each in figure.columns.records()} == {"hast:ste-epochs-1:hast/w3a3:0"}
