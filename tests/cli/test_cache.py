import shutil

import pytest


def last(text):
    return text.splitlines()[-1]


def test_the_cache_is_listed_by_kind_and_label(bench):
    bench.matrix("")
    bench.run()
    lines = bench.zsqbench("cache", "ls", "--home", bench.home).out.splitlines()
    expected = ["baseline a", "diagnose a toy seed 0", "evaluate a toy toyq hw/w4a4 seed 0", "generate a toy seed 0"]
    assert expected == [line.split("MB  ")[1] for line in lines[:4]]


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_the_cache_is_listed_with_what_is_damaged_in_it(bench, content):
    bench.matrix("")
    bench.run()
    (bench.artifacts("generate")[0] / "manifest.json").write_text(content)
    said = bench.zsqbench("cache", "ls", "--home", bench.home)
    assert (said.code, "is damaged" in said.out) == (0, True), said.err


def test_an_empty_cache_is_listed_as_nothing(bench):
    assert (bench.zsqbench("cache", "ls", "--home", bench.home).code, "") == (0, "")


def test_a_sound_cache_is_verified(bench):
    bench.matrix("")
    bench.run()
    said = bench.zsqbench("cache", "verify", "--home", bench.home)
    assert (said.code, said.out) == (0, "7 artifacts, 0 damaged\n")


@pytest.mark.parametrize("kind", ["resolve", "inspect", "baseline", "generate", "diagnose", "quantize", "evaluate"])
def test_verify_finds_a_flipped_byte_and_puts_the_artifact_aside(bench, kind):
    bench.matrix("")
    bench.run()
    (folder,) = bench.artifacts(kind)
    file = min(sorted(folder.iterdir()), key=lambda path: path.name == "manifest.json")  # some have no other
    content = bytearray(file.read_bytes())
    place = content.find(b"seconds") if file.name == "manifest.json" else -1
    content[place] ^= 1
    file.write_bytes(content)
    said = bench.zsqbench("cache", "verify", "--home", bench.home)
    named = f"{kind} artifact {folder.name[:12]} is damaged (the content of {file.name} has changed)"
    assert (said.code, named in said.out, last(said.out), folder.exists()) == (1, True, "7 artifacts, 1 damaged", False)


def test_gc_says_what_would_go_and_removes_nothing(bench):
    bench.run()
    bench.matrix("seed: 0")
    bench.run()
    said = bench.zsqbench("cache", "gc", *bench.places())
    assert (last(said.out), len(bench.artifacts("generate"))) == ("4 artifacts would go; --yes removes them", 2)


def test_gc_removes_what_no_row_refers_to(bench):
    bench.run()
    bench.matrix("seed: 0")
    bench.run()
    said = bench.zsqbench("cache", "gc", "--yes", *bench.places())
    bench.calls()
    again = bench.run()
    assert (last(said.out), again.code, bench.calls()) == ("4 artifacts removed", 0, [])


def test_gc_keeps_what_a_result_started_from_and_its_oracle(bench):
    bench.add_plugin("""
class Fine(ToyQuantizer):
    name = "fine"
    start: str = "toyq"

    @property
    def keeps_epochs(self):
        return True

    def quantize(self, student, teacher, data, ctx):
        ctx.keep_epoch(1, student)
""")
    bench.matrix("quantizer: fine")
    assert bench.run().code == 0
    said = bench.zsqbench("cache", "gc", *bench.places())
    assert last(said.out) == "0 artifacts would go; --yes removes them"
    assert [len(bench.artifacts(kind)) for kind in ("quantize", "oracle")] == [2, 1]


def test_gc_removes_what_a_killed_writer_left(bench):
    bench.matrix("")
    bench.run()
    left = [bench.home / "store" / "generate" / ".abc.12345678", bench.home / "partial" / "abc"]
    for folder in left:
        folder.mkdir(parents=True)
    bench.zsqbench("cache", "gc", "--yes", *bench.places())
    assert [folder.exists() for folder in left] == [False, False]


def test_gc_does_not_guess_at_a_suite_without_rows(bench):
    bench.run()
    shutil.rmtree(bench.results)
    said = bench.zsqbench("cache", "gc", "--yes", *bench.places())
    assert (said.code, len(bench.artifacts("generate"))) == (2, 2)
