"""Times of files beside each other."""

from exportnets import SIZE, SMALL, exported

from zsqbench.export import latency as timing
from zsqbench.export.latency import latency


def test_files_are_timed_by_turns_on_one_thread_with_pixels_where_they_take_them(monkeypatch):
    order, given = [], {}
    run = timing.run

    def noted(session, images):
        order.append((id(session), len(images)))
        given[id(session)] = images.dtype.name
        return run(session, images)

    monkeypatch.setattr(timing, "run", noted)
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    files = {"one": exported("bounded", "qdq/w8a8").path, "other": exported("moving", "qdq/w4a8", **SMALL).path}
    found = latency(files, SIZE, (1, 3))
    assert found.keys() == {1, 3}
    turns = 2 * (timing.WARM_UP + timing.LEAST_RUNS)
    sizes = [size for _, size in order]
    assert sizes == [1] * turns + [3] * turns
    first, second = dict.fromkeys(session for session, _ in order)
    assert [session for session, _ in order] == [first, second] * turns
    assert given == {first: "float32", second: "uint8"}
    for times in (found[1]["one"], found[3]["other"]):
        assert 0 < times.p50 <= times.p95


def test_many_runs_are_made_where_they_are_quick(monkeypatch):
    count = []
    monkeypatch.setattr(timing, "run", lambda *_: count.append(1))
    latency({"one": exported("bounded", "qdq/w8a8").path}, SIZE, (1,))
    assert len(count) == timing.MOST_RUNS
