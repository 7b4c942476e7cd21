"""Checks that generators and quantizers have in common."""

import json
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from zsqbench.errors import ZSQBenchError, one_line
from zsqbench.methods import DATA_SETS, Method
from zsqbench.scheme import parse_scheme
from zsqbench.testing.memory import measure_memory
from zsqbench.testing.report import Report

OPTIONS = "options survive the way to a worker, as JSON"
FILLED_IN = "options that it fills in for a network are values that it takes, and stay when it does so again"
WITHOUT_BN = "a network without BN: one clear line from a method that declares needs_bn, and no problem for others"
WITHOUT_ATTENTION = "a network without attention: one clear line from a method that declares needs_attention"
BF16 = "works under bfloat16 autocast, which suites may ask for"
MEMORY = "memory grows no faster than the images, and is given back"

GROWTH = 2.25
"""What the peak may be multiplied by when the images are doubled; it is 2 at most where it grows in proportion."""
KEPT = 64 * 1024
"""Bytes that may stay: what a method caches once, such as a kernel for a blur."""


def check_options(report: Report) -> None:
    """Options must survive the way to a worker, as they are and as they are filled in for the networks of papers."""
    method, scheme = report.method, parse_scheme("hw/w4a4")
    report.require(OPTIONS, _rebuilt(method) == method, "has options that do not survive JSON")
    for name, network in DATA_SETS.items():
        where = f" (for a network of {name})"
        try:
            filled_in = method.resolved(network, scheme)
            again, rebuilt = filled_in.resolved(network, scheme), _rebuilt(filled_in)
        except Exception as error:  # noqa: BLE001 - a method may raise anything
            report.blame(FILLED_IN, error, where)
            continue
        report.require(FILLED_IN, again == filled_in, "fills in other options when it does so again", where)
        report.require(FILLED_IN, rebuilt == filled_in, "fills in options that do not survive JSON", where)


def _rebuilt(method: Method) -> Method:
    """The method as a worker builds it."""
    return type(method).model_validate_json(json.dumps(method.options()), strict=True)


def check_needs_bn(report: Report, call: Callable[[], Any]) -> None:
    """A method that declares `needs_bn` must say so of a network without, in one line."""
    _check_refusal(report, WITHOUT_BN, "needs_bn", "BN", call)


def check_needs_attention(report: Report, call: Callable[[], Any]) -> None:
    """A method that declares `needs_attention` must say so of a network without, in one line."""
    _check_refusal(report, WITHOUT_ATTENTION, "needs_attention", "attention", call)


def _check_refusal(report: Report, check: str, flag: str, what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except ZSQBenchError as error:
        report.require(check, "\n" not in str(error), f"raised an error of several lines without {what}", "", error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not the error that was expected
        complaint = f"raised {one_line(error)} on a network without {what}; expected a ZSQBenchError"
        report.require(check, False, complaint, "", error)
    else:
        complaint = f"declares {flag}, and ran on a network without {what}; expected a ZSQBenchError"
        report.require(check, False, complaint)


def check_memory(report: Report, call: Callable[[int], Any], images: int) -> None:
    """The peak of `call(images)` may not grow faster than the images, and little may stay alive after it.

    It is not checked where the method refuses these numbers of images.
    """
    try:
        call(images)  # what is made once, such as a constant, is no growth
        peak, _ = measure_memory(lambda: call(images))
        doubled, kept = measure_memory(lambda: call(2 * images))
    except (ValidationError, ZSQBenchError) as error:
        report.skip(MEMORY, f"it does not take {images} and {2 * images} images: {one_line(error)}")
        return
    except Exception as error:  # noqa: BLE001 - a method may raise anything
        report.blame(MEMORY, error, f" with {images} or {2 * images} images")
        return
    grown = f"took {doubled / 1e6:.1f} MB for {2 * images} images and {peak / 1e6:.1f} MB for {images}"
    report.require(MEMORY, doubled <= GROWTH * peak + KEPT, f"{grown}; expected twice as much at most")
    report.require(MEMORY, kept <= KEPT, f"kept {kept / 1e6:.1f} MB of tensors after the call")
