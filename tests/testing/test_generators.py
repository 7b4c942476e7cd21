import os
import random
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

import zsqbench
from zsqbench.errors import ZSQBenchError
from zsqbench.execution.reporter import FLAT
from zsqbench.synthesis import BNLoss, BNStatistics
from zsqbench.testing import check_generator, generators, observation, shared, tiny_teacher, tiny_teachers
from zsqbench.testing.generators import examine_generator
from zsqbench.testing.report import Report
from zsqbench.zoo import digits

PLAIN = {"plain BN": tiny_teacher()}


def noise(self, teacher, ctx):
    return zsqbench.CalibrationSet(ctx.randn(self.images, *teacher.input_size))


def generator(act=None, generate=noise, **flags):
    """A generator that does something besides making noise, or makes something else."""

    class Broken(zsqbench.Generator):
        name = "broken"
        images: int = 4

        def generate(self, teacher, ctx):
            if act is not None:
                act(teacher)
            return generate(self, teacher, ctx)

    for name, value in flags.items():
        setattr(Broken, name, value)
    return Broken()


def failures(broken, teachers=PLAIN, networks=lambda: PLAIN):
    """The checks that fail, and why; without teachers all checks are made, on one network where not on these."""
    report = Report(broken)
    with mock.patch.object(generators, "tiny_teachers", networks):
        examine_generator(report, teachers)
    return {finding.check: finding.reason for finding in report.summary() if finding.outcome == "FAILED"}


@pytest.mark.usefixtures("measured")
def test_a_sound_generator_passes():
    assert failures(generator(), None, tiny_teachers) == {}


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda _: torch.rand(1), "used torch's global randomness"),
        (lambda _: random.random(), "used the global randomness of Python's random"),  # noqa: S311
        (lambda _: np.random.rand(), "used NumPy's global randomness"),  # noqa: NPY002
        (lambda _: torch.set_grad_enabled(False), "left gradients on or off"),
        (lambda _: torch.set_default_dtype(torch.float64), "changed the default dtype"),
        (lambda _: torch.set_default_device("meta"), "changed the default device"),
        (lambda _: torch.set_num_threads(torch.get_num_threads() + 1), "changed the number of threads"),
        (lambda _: torch.use_deterministic_algorithms(True), "switched deterministic algorithms"),
        (lambda _: os.chdir("/"), "changed the working directory"),
        (
            lambda _: nn.modules.module.register_module_forward_hook(lambda *_: None),
            "left global hooks of torch",
        ),
    ],
)
def test_global_state_that_is_changed_is_found_and_set_back(act, reason):
    def act_last(self, teacher, ctx):
        made = noise(self, teacher, ctx)
        act(teacher)
        return made

    before = observation._global_state()
    assert failures(generator(generate=act_last))[observation.GLOBAL].startswith(reason)
    assert observation._global_state() == before


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda teacher: teacher.module.classifier.weight.data.add_(1), "changed the teacher's weights or buffers"),
        (lambda teacher: teacher.module.stem[1].running_mean.zero_(), "changed the teacher's weights or buffers"),
        (lambda teacher: teacher.module.stem.register_forward_hook(lambda *_: None), "left hooks on the teacher"),
        (lambda teacher: teacher.module.stem.train(), "left the teacher in train mode"),
        (lambda teacher: teacher.module.requires_grad_(True), "left the teacher's weights with requires_grad"),
    ],
)
def test_a_teacher_that_is_changed_is_found(act, reason):
    assert failures(generator(act)) == {observation.TEACHER: f"{reason} (on plain BN)"}


def test_reading_the_data_of_a_task_is_found():
    def cheat(_):
        next(Path(os.environ["ZSQBENCH_DATA_ROOT"]).rglob("*.png")).read_bytes()

    (reason,) = set(failures(generator(cheat)).values()) - {""}
    assert "methods must not read the task's data" in reason


def test_reading_the_embedded_data_is_found():
    assert "methods must not read the task's data" in str(failures(generator(lambda _: digits.load_digits("test"))))


def test_reading_any_file_is_found_and_named(tmp_path):
    file = tmp_path / "prior.txt"
    file.write_text("1", encoding="utf-8")
    found = failures(generator(lambda _: file.read_text(encoding="utf-8")))
    assert found == {
        observation.FILES: f"read {file}; name a file that it needs in an option of type InputFile (on plain BN)"
    }


def test_a_file_that_an_option_names_and_one_of_its_own_may_be_read(tmp_path):
    file, own = tmp_path / "prior.txt", tmp_path / "own.txt"
    file.write_text("1", encoding="utf-8")

    class Reads(zsqbench.Generator):
        name = "reads"
        images: int = 4
        prior: zsqbench.InputFile

        def generate(self, teacher, ctx):
            own.write_text(self.prior.read_text(encoding="utf-8"), encoding="utf-8")
            own.read_bytes()
            return noise(self, teacher, ctx)

    assert failures(Reads(prior=file)) == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda images: images.double(), "returned torch.float64 images"),
        (lambda images: images / 0, "NaN or infinite pixels"),
        (lambda images: images[:3], "gave 3 images of 4"),
        (lambda images: images[:, :2], "returned images of shape (4, 2, 8, 8)"),
        (lambda images: images.transpose(2, 3), "gave images that need .detach().cpu().contiguous()"),
        (lambda images: images.clone().requires_grad_(), "gave images that need .detach().cpu().contiguous()"),
        (
            lambda images: images.numpy(),
            "images as a NumPy array of float32; expected a torch.Tensor: take torch.from_numpy(images).float() (on",
        ),
        (lambda _: None, "returned images as NoneType; expected a torch.Tensor (on plain BN)"),
    ],
)
def test_images_that_are_not_clean_are_found(change, reason):
    def generate(self, teacher, ctx):
        return zsqbench.CalibrationSet(change(ctx.randn(self.images, *teacher.input_size)))

    assert reason in failures(generator(generate=generate))[generators.IMAGES]


def test_what_is_no_calibration_set_is_found():
    found = failures(generator(generate=lambda *_: None))
    assert "returned NoneType; expected a CalibrationSet" in found[generators.IMAGES]


def test_labels_of_another_type_are_found():
    def generate(self, teacher, ctx):
        return zsqbench.CalibrationSet(ctx.randn(4, *teacher.input_size), torch.zeros(4))

    assert "labels" in failures(generator(generate=generate))[generators.IMAGES]


def test_images_and_labels_in_arrays_are_told_as_such():
    def array(self, teacher, ctx):
        return noise(self, teacher, ctx).images.numpy()

    found = failures(generator(generate=array))[generators.IMAGES]
    assert found.startswith("generator broken returned a NumPy array of float32; expected a CalibrationSet")

    def labels_in_an_array(self, teacher, ctx):
        return zsqbench.CalibrationSet(noise(self, teacher, ctx).images, np.zeros(self.images))

    found = failures(generator(generate=labels_in_an_array))[generators.IMAGES]
    assert (
        "returned labels as a NumPy array of float64; expected a torch.Tensor: take torch.from_numpy(labels)" in found
    )


def labelled(self, teacher, ctx):
    return zsqbench.CalibrationSet(noise(self, teacher, ctx).images, torch.arange(self.images))


def outcomes(broken, check):
    """How a check ended, and why."""
    report = Report(broken)
    examine_generator(report, PLAIN)
    return [(finding.outcome, finding.reason) for finding in report.summary() if finding.check == check]


def test_labels_that_are_not_declared_get_advice_and_labels_that_are_not_there_fail():
    assert outcomes(generator(generate=labelled, gives_labels=True), generators.LABELS) == [("ok", "")]
    ((outcome, advice),) = outcomes(generator(generate=labelled), generators.LABELS)
    assert (outcome, advice.startswith("returned labels; declare gives_labels = True, ")) == ("advice", True)
    assert failures(generator(gives_labels=True)) == {
        generators.LABELS: "declares gives_labels, and returned no labels (on plain BN)"
    }


def test_two_sets_for_one_seed_are_found():
    counter = iter(range(100))

    def generate(self, teacher, ctx):
        return zsqbench.CalibrationSet(torch.full((4, *teacher.input_size), float(next(counter))))

    assert "two different sets for one seed" in failures(generator(generate=generate))[generators.SEED]


def test_one_set_for_two_seeds_is_found_unless_it_is_declared():
    def generate(self, teacher, ctx):
        return zsqbench.CalibrationSet(torch.zeros(4, *teacher.input_size))

    assert "gave one set for two seeds" in failures(generator(generate=generate))[generators.SEED]
    assert failures(generator(generate=generate, seeded=False)) == {}


def test_a_checkpoint_that_leads_elsewhere_is_found():
    def generate(self, teacher, ctx):
        state = ctx.resume() or {"done": 0}
        pixels = ctx.randn(4, *teacher.input_size)
        ctx.checkpoint({"done": 1})
        return zsqbench.CalibrationSet(pixels + state["done"])

    assert "when resumed from a checkpoint" in failures(generator(generate=generate))[generators.CHECKPOINTS]


def keeping(keep, take=lambda state: state):
    """A generator that adds up noise, with checkpoints of what `keep` makes of its state; `take` makes it back."""

    def generate(self, teacher, ctx):
        kept = ctx.resume()
        state = take(kept) if kept else {"done": 0, "pixels": ctx.randn(self.images, *teacher.input_size)}
        pixels = state["pixels"]
        for done in range(state["done"], 4):
            pixels = pixels + ctx.randn(*pixels.shape)
            ctx.checkpoint(keep({"done": done + 1, "pixels": pixels}))
        return zsqbench.CalibrationSet(pixels.contiguous())

    return generator(generate=generate)


def test_a_generator_that_goes_on_from_checkpoints_passes():
    assert failures(keeping(lambda state: state)) == {}
    turned = keeping(
        lambda state: {**state, "pixels": state["pixels"].mT.requires_grad_()},
        lambda kept: {**kept, "pixels": kept["pixels"].mT},
    )
    assert failures(turned) == {}


def test_a_nested_checkpoint_is_found_with_its_place_and_the_rule():
    found = failures(keeping(lambda state: {"at": state}, lambda kept: kept["at"]), teachers=None)
    assert found == {
        generators.CHECKPOINTS: "offered a state that ends a run: a checkpoint cannot keep state['at']['pixels'], "
        f"a tensor: {FLAT} (on plain BN)"
    }


def test_a_checkpoint_that_a_file_changes_is_found():
    """A file gives a tuple back as a list."""

    def take(kept):
        assert kept["shape"] == (4, 3, 8, 8)
        return kept

    assert (
        "AssertionError"
        in failures(keeping(lambda state: {**state, "shape": (4, 3, 8, 8)}, take))[generators.CHECKPOINTS]
    )


def test_a_checkpoint_that_safetensors_refuses_is_found():
    found = failures(keeping(lambda state: {**state, "pixels": state["pixels"].to(torch.complex128)}))
    assert found[generators.CHECKPOINTS].startswith("offered a state that no file holds: ")


NO_BN = ZSQBenchError("the network has no BN")


def needing_norms(error=NO_BN):
    def act(teacher):
        if not any(
            isinstance(part, nn.BatchNorm2d) or hasattr(part, "running_mean") for part in teacher.module.modules()
        ):
            raise error

    return act


def test_a_clear_line_on_a_network_without_bn_is_what_needs_bn_asks_for():
    assert failures(generator(needing_norms(), needs_bn=True), teachers=None) == {}


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (None, "declares needs_bn, and ran on a network without BN"),
        (needing_norms(IndexError("list index out of range")), "raised IndexError"),
        (needing_norms(ZSQBenchError("two\nlines")), "raised an error of several lines"),
    ],
)
def test_needs_bn_without_a_clear_error_is_found(act, reason):
    found = failures(generator(act, needs_bn=True), teachers=None)
    assert found[shared.WITHOUT_BN].startswith(reason)


def test_needing_bn_without_a_word_is_found():
    found = failures(generator(needing_norms()), teachers=None)
    assert found.keys() == {shared.WITHOUT_BN}
    assert "does not declare needs_bn" in found[shared.WITHOUT_BN]


def needing_attention(error=zsqbench.ZSQBenchError("the network has no attention")):  # noqa: B008
    def act(teacher):
        if not hasattr(teacher.module, "blocks") and not hasattr(teacher.module, "block"):
            raise error

    return act


def test_what_looks_at_attention_is_tried_on_transformers_and_has_to_refuse_others():
    assert failures(generator(needing_attention(), needs_attention=True), teachers=None) == {}
    found = failures(generator(needs_attention=True), teachers=None)
    assert found == {shared.WITHOUT_ATTENTION: found[shared.WITHOUT_ATTENTION]}
    assert found[shared.WITHOUT_ATTENTION].startswith(
        "declares needs_attention, and ran on a network without attention"
    )


@pytest.mark.parametrize(
    ("act", "networks"),
    [
        (lambda teacher: teacher.module.stem[1].num_batches_tracked, {"works on FrozenBN"}),
        (lambda teacher: teacher.module.inner, {"works on transposed and 1-d convolutions"}),
    ],
)
def test_a_network_that_it_does_not_work_on_is_found(act, networks):
    def only_with_bn(teacher):
        if isinstance(teacher.module.stem[1], nn.Identity):
            raise ZSQBenchError("the network has no BN")
        act(teacher)

    assert failures(generator(only_with_bn, needs_bn=True), None, tiny_teachers).keys() == networks


def test_images_in_bfloat16_are_found():
    def generate(self, teacher, ctx):
        images = ctx.randn(4, *teacher.input_size)
        return zsqbench.CalibrationSet(images @ torch.eye(8))

    found = failures(generator(generate=generate), teachers=None)
    assert found.keys() == {generators.IMAGES}
    assert "torch.bfloat16" in found[generators.IMAGES]


@pytest.mark.usefixtures("measured")
def test_memory_that_grows_with_the_square_of_the_images_is_found():
    def generate(self, teacher, ctx):
        images = ctx.randn(self.images, *teacher.input_size)
        (images[:, None] - images[None]).square().sum()
        return zsqbench.CalibrationSet(images)

    found = failures(generator(generate=generate), teachers=None)
    assert "expected twice as much at most" in found[shared.MEMORY]


@pytest.mark.usefixtures("measured")
def test_tensors_that_stay_alive_are_found():
    kept = []

    def generate(self, teacher, ctx):
        kept.append(torch.zeros(100_000))
        return noise(self, teacher, ctx)

    assert "MB of tensors after the call" in failures(generator(generate=generate), teachers=None)[shared.MEMORY]


@pytest.mark.usefixtures("measured")
def test_memory_is_not_checked_where_the_number_of_images_is_fixed():
    class Fixed(zsqbench.Generator):
        name = "fixed"
        images: int = Field(4, ge=4, le=4)
        generate = noise

    report = Report(Fixed())
    examine_generator(report)
    assert [finding.outcome for finding in report.summary() if finding.check == shared.MEMORY] == ["not checked"]


def test_a_generator_that_raises_in_the_first_call_fails_and_is_not_checked_further():
    def fail(*_):
        raise KeyError("x")

    assert "raised KeyError: 'x'" in failures(generator(generate=fail))["works on plain BN"]


def test_the_strict_check_raises_with_one_sentence():
    with pytest.raises(AssertionError, match=r"^generator broken left the teacher in train mode \(on plain BN\)$"):
        check_generator(generator(lambda teacher: teacher.module.train()))


def test_the_strict_check_hands_on_what_the_method_raises():
    def fail(*_):
        raise KeyError("x")

    with pytest.raises(KeyError):
        check_generator(generator(generate=fail))


def test_options_that_do_not_survive_json_are_found():
    class Lossy(zsqbench.Generator):
        name = "lossy"
        images: int = 4
        limit: object = (1, 2)
        generate = noise

    assert "do not survive JSON" in failures(Lossy())[shared.OPTIONS]


def filling_in(automatic):
    """A generator that fills in what this function gives."""

    class Automatic(zsqbench.Generator):
        name = "automatic"
        first: zsqbench.Auto[float] = zsqbench.auto(gt=0, description="one option")
        second: zsqbench.Auto[float] = zsqbench.auto(gt=0, description="another")
        generate = noise

    Automatic.automatic = lambda self, network, _: automatic(self, network)
    return Automatic(images=4)


def test_options_that_are_filled_in_pass():
    sound = filling_in(lambda _, network: {"first": network.classes, "second": max(network.input_size)})
    assert shared.FILLED_IN not in failures(sound)


def test_a_value_that_an_option_does_not_take_is_found():
    found = failures(filling_in(lambda *_: {"first": 0.0}))[shared.FILLED_IN]
    assert "fills in first: 0.0 for this network" in found
    assert found.endswith("greater than 0; give these options too (for a network of cifar10)")


def test_an_option_that_is_filled_in_the_second_time_only_is_found():
    late = filling_in(lambda self, _: {"first": 1.0, "second": self.first})
    assert failures(late)[shared.FILLED_IN] == (
        "fills in other options when it does so again (for a network of cifar10)"
    )


def test_a_generator_that_leaves_no_hooks_passes():
    def act(teacher):
        with BNLoss(teacher.module, BNStatistics()) as loss:
            loss(torch.zeros(1, *teacher.input_size))

    assert failures(generator(act, needs_bn=True), teachers=None) == {}
