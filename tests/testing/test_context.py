import pytest
import torch
from torch import nn

from zsqbench.errors import ZSQBenchError
from zsqbench.testing import context
from zsqbench.testing.context import ForgetfulReporter, PatientReporter


def test_a_kept_epoch_is_a_copy_of_the_student_as_it_was():
    ctx, student = context(), nn.Linear(2, 2)
    before = student.weight.detach().clone()
    ctx.keep_epoch(3, student)
    student.weight.data.zero_()
    assert torch.equal(ctx.reporter.epochs[3].weight, before)


def test_a_forgetful_reporter_keeps_no_epoch():
    reporter = ForgetfulReporter()
    reporter.keep_epoch(1, nn.Linear(2, 2))
    assert reporter.epochs == {}


def test_a_state_that_ends_a_run_is_refused_here_too_and_a_patient_reporter_remembers_the_first_reason():
    states = [{"net": {"x": torch.ones(1)}}, {"rng": 1}, {"done": 1}]
    with pytest.raises(ZSQBenchError, match=r"cannot keep state\['net'\]\['x'\], a tensor"):
        context().checkpoint(states[0])
    patient = PatientReporter()
    for state in states:
        patient.checkpoint(state)
    assert "state['net']['x']" in patient.refusal
    assert patient.states == [{"done": 1}]


def test_the_largest_number_of_images_read_counts():
    ctx = context()
    assert ctx.read is None
    for count, largest in ((0, 0), (8, 8), (4, 8), (9, 9)):
        ctx.images_read(count)
        assert ctx.read == largest
