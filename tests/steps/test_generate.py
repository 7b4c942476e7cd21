from faults import bad_generator, bad_generators

BAD_GENERATORS = {
    "nan": ("x[1, 0, 0, 0] = float('nan')", "generate: generator bad returned NaN or infinite pixels in 1 of 4 images"),
    "inf": ("x[:2] = float('inf')", "generate: generator bad returned NaN or infinite pixels in 2 of 4 images"),
    "shape": (
        "x = x[:, :, :4]",
        "generate: generator bad returned images of shape (4, 3, 4, 8); expected ('N', 3, 8, 8)",
    ),
    "no batch": ("x = x[0]", "generate: generator bad returned images of shape (3, 8, 8); expected ('N', 3, 8, 8)"),
    "no images": (
        "x = x[:0]",
        "generate: generator bad returned images of shape (0, 3, 8, 8); expected ('N', 3, 8, 8)",
    ),
    "type": ("x = x.double()", "generate: generator bad returned torch.float64 images; expected torch.float32"),
    "labels": ("labels = torch.zeros(3)", "generate: generator bad returned 3 labels for 4 images"),
    "shape of boxes": (
        "return zsqbench.CalibrationSet(x, boxes=torch.ones(2, 4))",
        "generate: generator bad returned boxes of shape [2, 4]; expected float32 [M, 6]",
    ),
    "boxes": (
        "return zsqbench.CalibrationSet(x, boxes=torch.ones(3, 6) * torch.tensor([[1], [9], [-1]]))",
        "generate: generator bad returned 2 of 3 boxes that belong to no image or are empty",
    ),
    "tensor": ("return x", "generate: generator bad returned Tensor; expected a CalibrationSet"),
    "nothing": ("return None", "generate: generator bad returned NoneType; expected a CalibrationSet"),
    "raises": ("raise ValueError('no luck')", "generate: ValueError: no luck"),
    "raises lines": ("raise ValueError('no\\nluck')", "generate: ValueError: no luck"),
    "raises nothing": ("raise ValueError", "generate: ValueError"),
    "raises an assertion": ("assert not len(x)", "generate: AssertionError"),
    "exits": ("sys.exit(0)", "generate: SystemExit: 0"),
    "changes weights": (
        "teacher.module[0].weight.mul_(2)",
        "generate: generator bad changed the teacher's weights or buffers; it must not",
    ),
    "changes statistics": (
        "teacher.module.train()(x)",
        "generate: generator bad changed the teacher's weights or buffers; it must not",
    ),
    "images that are none": ("x = x.tolist()", "generate: "),
    "odd text": ("raise ValueError('caf\\udce9')", "generate: ValueError: caf"),
}


def test_a_generator_that_goes_wrong_fails_its_cell_with_the_reason_and_no_other(bench):
    """One run has all of them, between two cells of one that works."""
    names = {what: f"bad{index}" for index, what in enumerate(BAD_GENERATORS)}
    bad_generators(bench, {names[what]: body for what, (body, _) in BAD_GENERATORS.items()})
    bench.matrix("seed: 0", f"generator: [{', '.join(names.values())}]", "seed: 1")
    said = bench.run()
    rows = {(row["generator"], row["seed"]): row for row in bench.rows().values()}
    assert (said.code, len(rows)) == (1, 2 + len(names))
    assert [rows["toy", seed]["status"] for seed in (0, 1)] == ["done", "done"]
    for what, (_, reason) in BAD_GENERATORS.items():
        row, expected = rows[names[what], 0], reason.replace("generator bad ", f"generator {names[what]} ")
        assert (row["status"], row["reason"][: len(expected)]) == ("failed", expected), what


def test_a_bug_in_a_method_keeps_its_traceback(bench):
    bad_generator(bench, "raise ValueError('no luck')")
    bench.matrix("generator: bad")
    bench.run()
    assert "extra.py" in bench.row()["traceback"]


def test_a_mistake_that_is_the_users_has_no_traceback(bench):
    bad_generator(bench, "x[0] = float('nan')")
    bench.matrix("generator: bad")
    bench.run()
    assert "traceback" not in bench.row()


def test_a_method_that_was_handed_no_real_images_sees_none(bench):
    bad_generator(bench, "assert ctx.real_images is None and not hasattr(ctx, 'data_root')")
    bench.matrix("generator: bad")
    bench.run()
    assert bench.row()["status"] == "done"


def test_bf16_runs_methods_under_autocast(bench):
    bad_generator(bench, "assert teacher.module(x).dtype == torch.bfloat16")
    bench.matrix("generator: bad, settings: {precision: bf16}")
    bench.run()
    assert bench.row()["status"] == "done", bench.row().get("reason")


def test_channels_last_is_the_layout_of_the_teacher(bench):
    bad_generator(bench, "assert teacher.module[0].weight.is_contiguous(memory_format=torch.channels_last)")
    bench.matrix("generator: bad, settings: {layout: channels_last}")
    bench.run()
    assert bench.row()["status"] == "done", bench.row().get("reason")


def test_the_threads_of_a_step_are_those_of_its_settings(bench):
    bad_generator(bench, "assert torch.get_num_threads() == 2")
    bench.matrix("generator: bad, settings: {threads: 2}")
    bench.run()
    assert bench.row()["status"] == "done", bench.row().get("reason")
