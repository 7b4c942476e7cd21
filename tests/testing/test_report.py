from pathlib import Path

import pytest

import zsqbench
from zsqbench.testing.report import CALLS, Origin, Report, origin_of


class Fails(zsqbench.Generator):
    name = "fails"

    def generate(self, teacher, ctx):
        raise KeyError(teacher)


def raised(call):
    with pytest.raises(Exception, match="x") as caught:
        call()
    return caught.value


def line_of(text):
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip() == text)


def test_an_error_arose_in_the_last_line_of_the_plugin_that_was_at_work():
    found = origin_of(raised(lambda: Fails().generate("x", None)), Fails())
    line = line_of("raise KeyError(teacher)")
    place = f"{__file__}, line {line}, in generate: raise KeyError(teacher)"
    assert found == Origin(__file__, line, (place, "KeyError: 'x'"))


def test_an_error_in_what_the_plugin_calls_is_told_with_both_places():
    class Reads(Fails):
        def generate(self, teacher, ctx):
            return Path(teacher).read_text(encoding="utf-8")

    found = origin_of(raised(lambda: Reads().generate("x", None)), Reads())
    assert (found.file, found.line) == (__file__, line_of('return Path(teacher).read_text(encoding="utf-8")'))
    own, *deeper, error = found.traceback
    assert own.endswith('in generate: return Path(teacher).read_text(encoding="utf-8")')
    assert 0 < len(deeper) <= CALLS
    assert error.startswith("FileNotFoundError: ")


def test_of_an_error_elsewhere_there_is_a_traceback_alone():
    class Other(Fails):
        __module__ = "pathlib"

    found = origin_of(raised(lambda: Fails().generate("x", None)), Other())
    assert (found.file, found.line, found.traceback[-1]) == (None, None, "KeyError: 'x'")


def test_a_failure_counts_more_than_advice_and_advice_more_than_what_is_sound():
    report = Report(Fails())
    report.require("a", True, "")
    report.advise("a", "do it", " (here)")
    report.skip("a", "no time")
    (finding,) = report.summary()
    assert (finding.outcome, finding.reason, report.passed) == ("advice", "do it (here)", True)
    report.require("a", False, "did it")
    (finding,) = report.summary()
    assert (finding.outcome, finding.reason, finding.origin, report.passed) == ("FAILED", "did it", None, False)


def test_what_a_method_raised_is_kept_with_its_origin_and_a_strict_report_raises_it():
    error = raised(lambda: Fails().generate("x", None))
    report = Report(Fails())
    report.blame("a", error, " (here)")
    (finding,) = report.findings
    assert finding.reason == "raised KeyError: 'x' (here)"
    assert isinstance(finding.origin, Origin)
    with pytest.raises(KeyError):
        Report(Fails(), strict=True).blame("a", error)
