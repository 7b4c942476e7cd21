"""Make a checkup: examine a network and its students, and find which methods can run on it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zsqbench.cli.networks import LoadedNetwork
    from zsqbench.methods import Kind, Pretrained
    from zsqbench.plugins import Catalog
    from zsqbench.quant import Examination
    from zsqbench.reports.doctor import Checkup
    from zsqbench.scheme import Inspection, Scheme
    from zsqbench.steps import NetworkFacts
    from zsqbench.suite import Suite, Variant

SCHEMES = ("hw/w4a4", "hw_strict/w8a8", "pot/w8a8", "qdq/w8a8")
"""The schemes at which a network is tried if there is no suite."""

Tell = Callable[[str], None]
"""A function that reports what is being done."""


def check_up(
    network: "LoadedNetwork", suite: "Suite | None", catalog: "Catalog", data_root: Path | None, tell: Tell
) -> "Checkup":
    """Examine a network at the schemes and with the methods of a suite. Without a suite, take all installed methods."""
    from zsqbench.quant import examine
    from zsqbench.reports.doctor import Checkup
    from zsqbench.scheme import parse_scheme

    pretrained = network.pretrained
    pretrained.module.eval().requires_grad_(requires_grad=False)
    tell("examining the network")
    examination = examine(pretrained.module, pretrained.input_size)
    facts = _facts(network, examination)
    schemes = list(suite.schemes.values()) if suite else [parse_scheme(text) for text in SCHEMES]
    generators, quantizers = (_variants(kind, suite, catalog) for kind in _KINDS)
    no_images = _no_images(network, suite, data_root)
    students = _Students(examination.blocker, by_units=any(map(_runs_by_units, quantizers.values())))
    for scheme in schemes:
        if not scheme.is_float:
            tell(f"preparing a student at {scheme.name}")
            students.inspect(pretrained, scheme)
    return Checkup(
        model=network.spec.name,
        input_size=pretrained.input_size,
        parameters=facts.parameters,
        random_weights=network.spec.random_weights,
        examination=examination,
        students=students.found,
        generators={
            label: _lack(each, facts, network.spec.name)
            or students.lack_of_attention(each, pretrained)
            or (no_images if _reads_images(each) else None)
            for label, each in generators.items()
        },
        quantizers={
            scheme.name: {
                label: _lack(each, facts, network.spec.name, scheme) or students.lack(each, scheme)
                for label, each in quantizers.items()
            }
            for scheme in schemes
        },
        notes=network.notes,
    )


_KINDS: "tuple[Kind, ...]" = ("generator", "quantizer")


class _Students:
    """The students of a network at its schemes.

    Schemes that differ only in numbers of bits and in grids share one student. It is prepared and compared with the
    network once. Its units depend on the graph, so they are compared once for all schemes that fold alike.
    """

    def __init__(self, blocker: str | None, *, by_units: bool) -> None:
        self.found: dict[str, Inspection] = {}
        self._blocker, self._by_units = blocker, by_units
        self._alike: dict[str, Inspection] = {}
        self._units: dict[bool, str | None] = {}
        """Why the network cannot be run unit by unit, with and without folded norms. None: it can."""

    def inspect(self, network: "Pretrained", scheme: "Scheme") -> None:
        """Inspect the student at a scheme, unless a blocker is known."""
        from zsqbench.scheme import Inspection

        if self._blocker is not None:
            self.found[scheme.name] = Inspection(blocker=self._blocker)
            return
        alike = _places(scheme)
        if alike not in self._alike:
            self._alike[alike] = self._inspected(network, scheme)
        self.found[scheme.name] = self._alike[alike]

    def _inspected(self, network: "Pretrained", scheme: "Scheme") -> "Inspection":
        from zsqbench.quant import inspect

        folds = scheme.placement.fold_bn
        by_units = self._by_units and folds not in self._units
        found = inspect(network.module, scheme, network.input_size, by_units=by_units)
        blocker = found.blocker
        if by_units and blocker is not None:  # of the units, or of the student
            found = inspect(network.module, scheme, network.input_size)
        if by_units and found.blocker is None:
            self._units[folds] = blocker
        return found

    def lack_of_attention(self, generator: "Variant | str", network: "Pretrained") -> str | None:
        """Why the network does not suit a generator that reads attention. None: it suits, or needs no attention."""
        from zsqbench.methods import Generator
        from zsqbench.steps.needs import lack_of_attention

        method = None if isinstance(generator, str) else generator.method
        if not isinstance(method, Generator) or not method.needs_attention:
            return None
        captured = [found for found in self.found.values() if not found.blocker]
        if not captured:
            return "see the blocker"
        return lack_of_attention(method, captured[0], network.input_size, "the network")

    def lack(self, quantizer: "Variant | str", scheme: "Scheme") -> str | None:
        """Why there is no student for a quantizer at a scheme. None: there is one."""
        if isinstance(quantizer, str) or scheme.is_float or not quantizer.chain[-1].quantizer.needs_graph:
            return None
        if self.found[scheme.name].blocker:
            return "see the blocker"
        from zsqbench.steps.needs import lack_of_map

        for link in quantizer.chain:
            lack = lack_of_map(link.quantizer, self.found[scheme.name], "the network")
            if lack is not None:
                return lack
        return self._units.get(scheme.placement.fold_bn) if _runs_by_units(quantizer) else None


def _places(scheme: "Scheme") -> str:
    """Where a scheme puts quantizers, as a text. Bits and grids do not change it: schemes alike have the same text."""
    from zsqbench.scheme import FLOAT_BITS

    widths = {name: getattr(scheme, name) // FLOAT_BITS for name in ("weight_bits", "activation_bits")}
    grids = dict.fromkeys(("grid", "weight_grid", "activation_grid"))
    placement = scheme.placement.model_copy(update={**grids, "input_range": "calibrated"})
    return scheme.model_copy(update={"name": "", "placement": placement, **widths}).model_dump_json()


def _facts(network: "LoadedNetwork", examination: "Examination") -> "NetworkFacts":
    """Facts that methods demand. A network without a task is a classifier if it returns a row for each image."""
    from zsqbench.steps.resolve import facts_of

    facts = facts_of(network.pretrained, "")
    shapes = [output.shape for output in examination.outputs]
    if network.task is None and len(shapes) == 1 and len(shapes[0]) == 2:  # noqa: PLR2004 - images, classes
        return replace(facts, classes=shapes[0][1])
    return facts


def _variants(kind: "Kind", suite: "Suite | None", catalog: "Catalog") -> "dict[str, Variant | str]":
    """The generators or quantizers of a suite, or all installed ones. A text says why a method cannot be used alone."""
    from zsqbench.suite import Variant

    if suite is not None:
        return dict(suite.generators if kind == "generator" else suite.quantizers)
    found: dict[str, Variant | str] = {}
    for name in catalog.names(kind):
        provided = catalog.find(kind, name)
        options = [info.alias or key for key, info in provided.method.model_fields.items() if info.is_required()]
        if options:
            found[name] = f"needs its option {options[0]!r}, which a suite gives"
        else:
            found[name] = Variant(name, provided.method(), provided.plugin)
    return found


def _no_images(network: "LoadedNetwork", suite: "Suite | None", data_root: Path | None) -> str | None:
    """Why there are no real images to calibrate on. None: there are, or there is no task, so that it is not known."""
    from zsqbench.errors import ZSQBenchError
    from zsqbench.methods.asking import asking
    from zsqbench.steps.needs import lack_of_images

    if suite is None or network.task is None:
        return None
    try:
        task = suite.task(network.task)
        with asking(task, "find_data"):
            files = task.find_data(data_root)
    except ZSQBenchError as error:
        return str(error)
    return None if files.calibration else lack_of_images(network.task)


def _reads_images(variant: "Variant | str") -> bool:
    return not isinstance(variant, str) and bool(getattr(variant.method, "uses_real_data", False))


def _runs_by_units(variant: "Variant | str") -> bool:
    return not isinstance(variant, str) and any(link.quantizer.by_units for link in variant.chain)


def _lack(variant: "Variant | str", facts: "NetworkFacts", model: str, scheme: "Scheme | None" = None) -> str | None:
    """Why a method cannot run for a network (a quantizer: at a scheme). None: it can."""
    from zsqbench.errors import ZSQBenchError
    from zsqbench.steps.needs import lack_of_network

    if isinstance(variant, str):
        return variant
    for link in variant.chain:
        lack = link.quantizer.rejects(scheme) if scheme is not None else None
        lack = lack or lack_of_network(link.method, facts, model)
        if lack is not None:
            return lack if link is variant else f"{variant.relation(link)}, of which is said: {lack}"
    try:
        variant.resolved(facts, scheme)
    except ZSQBenchError as error:  # of options that do not go together for this network
        return str(error)
    return None
