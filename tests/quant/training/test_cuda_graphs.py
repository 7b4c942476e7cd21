import contextlib
import copy

import pytest
import torch
from networks import same, state_of

from zsqbench.quant import (
    FineTuning,
    RecordedFunction,
    Schedule,
    calibrate_activations_minmax,
    calibrate_weights,
    prepare,
)
from zsqbench.scheme import parse_scheme
from zsqbench.testing import context, tiny_teacher

CPU = torch.device("cpu")
SIZE = (3, 8, 8)


def test_on_a_cpu_it_is_the_function():
    calls = []
    recorded = RecordedFunction(lambda setting, x: calls.append(setting) or {"sum": setting * x.sum()}, CPU)
    results = [float(recorded(setting, torch.full((2,), value))["sum"]) for setting, value in [(1, 3.0), (2, 5.0)] * 5]
    assert results == [6, 20] * 5
    assert calls == [1, 2] * 5


def test_what_cannot_be_recorded_is_called_on_and_nothing_is_recorded_after_it(monkeypatch):
    """Without a GPU, whose part stand-ins play."""

    class Recording:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            recording.append(True)

        def __exit__(self, *_):
            recording.clear()
            raise RuntimeError("the recording failed before")

    class Stream:
        device = None

        def wait_stream(self, _):
            pass

    def function(_, x):
        if recording:
            raise RuntimeError("it waits\nfor the GPU")
        return {"double": 2 * x}

    recording, notes = [], []
    monkeypatch.setattr(RecordedFunction, "_possible", True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    for noted in (["steps are not recorded on the GPU: it waits"], []):
        recorded = RecordedFunction(function, torch.device("cuda"), notes.append)
        assert [float(recorded(0.0, torch.tensor(value))["double"]) for value in range(6)] == [0, 2, 4, 6, 8, 10]
        assert notes == noted
        notes.clear()


@pytest.mark.gpu
def test_on_a_gpu_it_is_played_back_and_recorded_anew_for_another_setting():
    calls, device = [], torch.device("cuda")
    total = torch.zeros((), device=device)

    def function(setting, x, nothing):
        calls.append(setting)
        total.add_(setting * x.sum())
        assert nothing is None
        return {"total": total}

    recorded, settings = RecordedFunction(function, device), [1.0] * 10 + [0.5] * 10
    inputs = [torch.full((2,), 1.0 + step, device=device) for step in range(20)]
    results = [float(recorded(lr, x, None)["total"]) for lr, x in zip(settings, inputs, strict=True)]
    plain = [sum(lr * 2 * (1 + step) for step, lr in enumerate(settings[: last + 1])) for last in range(20)]
    assert results == plain
    assert calls == [1.0] * 4 + [0.5]
    with pytest.raises(ValueError, match=r"cannot be played back; those recorded had"):
        recorded(0.5, torch.ones(1, device=device), None)


@pytest.mark.gpu
def test_what_waits_for_the_gpu_is_called_on_with_a_note(monkeypatch):
    monkeypatch.setattr(RecordedFunction, "_possible", True)  # and afterwards again
    notes, device = [], torch.device("cuda")
    recorded = RecordedFunction(lambda _, x: {"double": x * 2 if x.sum() > 0 else x}, device, notes.append)
    assert [float(recorded(0.0, torch.full((), value, device=device))["double"]) for value in range(1, 9)] == [
        2 * value for value in range(1, 9)
    ]
    (note,) = notes
    assert note.startswith("steps are not recorded on the GPU: ")
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_student_learns_the_same_with_and_without(precision, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    drawn = [torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    teacher = tiny_teacher().module
    found, calls = [], []
    for warm_up in (3, 100):
        monkeypatch.setattr("zsqbench.quant.training.cuda_graphs.WARM_UP", warm_up)
        student = prepare(copy.deepcopy(teacher), parse_scheme("hast/w3a3"), SIZE)
        calibrate_weights(student, "minmax")
        calibrate_activations_minmax(student, drawn)
        student.cuda()
        ctx = context()
        engine = FineTuning(student, ctx, Schedule(3, 4, 0.01, milestones=[2]), {})

        def gradients(images, engine=engine):
            calls.append(None)
            loss = engine.network(images).float().square().mean()
            loss.backward()
            return {"loss": loss}

        with torch.autocast("cuda", precision, enabled=precision != torch.float32, cache_enabled=False), engine:
            engine.run(lambda update: ([drawn[update].cuda()], {}), gradients)
        found.append((state_of(student.cpu()), ctx.reporter.curves, len(calls)))
        assert not ctx.reporter.notes
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert [count for *_, count in found] == [3 + 2, 3 + 2 + 12]  # warming up, and one recording for each learning rate
