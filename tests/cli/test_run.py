import shutil


def test_a_run_prints_its_table_and_writes_it(bench):
    said = bench.run()
    assert said.out == (bench.results / "toysuite.md").read_text()


def test_a_run_shows_the_figures_that_are_asked_for_and_tells_of_one_that_no_row_has(bench):
    said = bench.run("--columns", "seconds, seconds/quantize")
    assert said.code == 0
    assert said.out == (bench.results / "toysuite.md").read_text()
    assert "hw/w4a4 seconds (s)" in said.out
    said = bench.run("--columns", "secs")
    assert (said.code, "seconds" in said.out) == (2, False)
    assert said.err.splitlines()[-1].startswith("error: unknown column 'secs' in --columns; ")


def test_a_quiet_run_says_nothing_but_the_table(bench):
    assert bench.run("--quiet").err == ""


def test_notes_of_the_suite_are_told(bench):
    bench.matrix("seed: [0, 0]")
    said = bench.run()
    assert f"note: {bench.file}:5: 1 cell of block 1 already appeared in the same block" == said.err.splitlines()[0]


def test_home_and_data_root_may_come_from_the_environment(bench, monkeypatch):
    monkeypatch.setenv("ZSQBENCH_HOME", str(bench.folder / "elsewhere"))
    monkeypatch.setenv("ZSQBENCH_DATA_ROOT", str(bench.folder / "root"))
    bench.write("root/data/eval.txt", "3")
    bench.write("root/data/train.txt", "4")
    shutil.rmtree(bench.folder / "data")
    said = bench.zsqbench("run", bench.file, "--workers", 0, "--no-plugin", "mlflow", "--results", bench.results)
    assert (said.code, (bench.folder / "elsewhere" / "store").is_dir()) == (0, True), said.err


def test_folders_are_relative_to_where_the_command_runs(bench, monkeypatch):
    monkeypatch.chdir(bench.folder)
    said = bench.zsqbench("run", "toy.yaml", "--workers", 0, "--no-plugin", "mlflow")
    assert (said.code, [(bench.folder / name).is_dir() for name in (".zsqbench", "results")]) == (0, [True] * 2)


def test_a_run_of_an_older_store_loads_no_model_again(bench):
    bench.run()
    bench.calls()
    bench.matrix("scheme: hw/w8a8, seed: 0")
    bench.run()
    assert bench.calls() == ["load a", "quantize 0", "evaluate"]
