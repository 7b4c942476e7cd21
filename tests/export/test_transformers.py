"""Transformers as files: attention, layer normalisation, GELU, tokens that are joined, and windows that are shifted."""

from collections import Counter

import pytest
from exportnets import exported

SLOW = (
    pytest.mark.slow("torch takes half a minute to write down a network of four blocks"),
    pytest.mark.timeout(600),
)

# How many layers, and products of two tensors. Swin's merging is a layer.
NETWORKS = [
    pytest.param("encoder_norm_first", 6, 2),  # one block
    pytest.param("vit", 10, 4, marks=SLOW),
    pytest.param("stack", 10, 4, marks=SLOW),
    pytest.param("swin", 19, 8, marks=SLOW),
    pytest.param("swin_v2", 19, 8, marks=SLOW),
    pytest.param("convnext", 12, 0, marks=SLOW),
    pytest.param("timm_vit", 10, 4, marks=SLOW),
    pytest.param("timm_deit_distilled", 11, 4, marks=SLOW),
    pytest.param("timm_vit_pooled", 10, 4, marks=SLOW),
    pytest.param("timm_swin", 19, 8, marks=SLOW),
]


@pytest.mark.slow("torch takes seconds to write down attention")
@pytest.mark.parametrize(("name", "layers", "products"), NETWORKS)
def test_a_transformers_file_computes_what_its_student_does_with_integers(name, layers, products):
    file = exported(name, "qdq/w8a8")
    found = file.check(count=32)
    assert found.problems == []
    structure = found.structure
    assert [len(part) for part in (structure.layers, structure.products)] == [layers, products]
    assert all(each.found and each.island is None for each in (*structure.layers, *structure.products))
    assert all(departure.tolerated for departure in found.exact)


def test_attention_is_written_in_operators_that_onnx_has_for_it_and_products_bear_the_names_of_their_tensors():
    file = exported("encoder_norm_first", "qdq/w8a8")
    kinds = Counter(node.op_type for node in file.graph())
    assert {kind: kinds[kind] for kind in ("LayerNormalization", "Softmax", "Gelu")} == {
        "LayerNormalization": 2, "Softmax": 1, "Gelu": 1,
    }  # fmt: skip
    names = [f"encoder.self_attn.{tensor}" for tensor in ("scores", "scaled_dot_product_attention")]
    assert [product.path for product in file.check(count=2).structure.products] == names
