"""Only the tests of the last two parts need Ray; they are skipped where it is absent."""

import operator
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter

import psutil
import pytest
from runs import WAITS, Started, check_rows

from zsqbench.errors import ZSQBenchError
from zsqbench.execution import ray_engine
from zsqbench.execution.nodes import Limits, NodeFuture
from zsqbench.execution.processes import WorkerDiedError
from zsqbench.execution.ray_engine import (
    Node,
    Ray,
    RayExecutor,
)
from zsqbench.execution.session import WorkerConfig
from zsqbench.methods.engine import NodeLostError
from zsqbench.plugins import load_plugins
from zsqbench.steps import Outcome

LIMIT = 100
ABSENT = "Ray is not installed: pip install '.[ray]'"


def test_the_engine_is_known_and_says_how_to_install_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    engine = load_plugins().find("engine", "ray").method()
    with pytest.raises(ZSQBenchError, match=r"needs Ray, which is not installed: pip install 'zsqbench\[ray\]'"):
        engine.slots()


@pytest.mark.parametrize("address", ["here", "ray://10.0.0.1:10001", "10.0.0.1:port", ":6379"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ZSQBenchError, match=rf"--address {address}: expected HOST:PORT"):
        ray_engine._check_answer(address)


@pytest.mark.parametrize("place", ["home", "variable", "nowhere"])
def test_the_token_of_a_cluster_is_shown_where_there_is_one(tmp_path, monkeypatch, place):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if place == "home":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    elif place == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that it is put back
    del os.environ["RAY_AUTH_MODE"]
    ray_engine._show_token()
    assert os.environ.get("RAY_AUTH_MODE") == (None if place == "nowhere" else "token")


@pytest.fixture
def server():
    """A function that answers one connection with some bytes, or with silence; it returns the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve(answer):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            if answer is None:
                ended.wait(10)
            else:
                connection.sendall(answer)

    def start(answer):
        threading.Thread(target=serve, args=(answer,), daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    ended.set()
    listener.close()


def test_a_port_that_nobody_listens_at_is_one_line_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ZSQBenchError, match=f"no Ray answers at {address}: Connection refused; `ray start --head`"):
        ray_engine._check_answer(address)


@pytest.mark.parametrize("answer", [b"HTTP/1.0 400 Bad Request\r\n", b""])
def test_another_server_is_no_ray(server, answer):
    with pytest.raises(ZSQBenchError, match="is not Ray; give the HOST:PORT"):
        ray_engine._check_answer(server(answer))


def test_a_server_that_says_nothing_is_not_waited_for_long(server, monkeypatch):
    monkeypatch.setattr(ray_engine, "CONNECT_SECONDS", 0.2)
    with pytest.raises(ZSQBenchError, match=r"no Ray answers at .*: timed out"):
        ray_engine._check_answer(server(None))


def test_a_server_that_speaks_http2_may_be_a_ray(server):
    ray_engine._check_answer(server(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"))


@pytest.mark.parametrize(
    ("node", "needs", "slots"),
    [((8, 0), (1, 0), 8), ((8, 0), (3, 0), 2), ((8, 2), (1, 1), 2), ((1, 4), (2, 1), 0), ((8, 0), (1, 1), 0)],
)
def test_a_node_has_as_many_slots_as_cpus_and_gpus_allow(node, needs, slots):
    assert Node("id", "name", *node).slots(*needs) == slots


def test_an_address_is_refused_by_an_engine_that_has_none(bench):
    said = bench.run("--address", "10.0.0.1:6379", workers=1)
    line = "error: --address 10.0.0.1:6379: the engine pool has none; --engine ray takes it\n"
    assert (2, line) == (said.code, said.err)


@pytest.fixture(scope="module")
def local():
    """A Ray of one process, to which this one is connected."""
    pytest.importorskip("ray", reason=ABSENT)
    executor = RayExecutor("local", Limits(threads=3), workers=1)
    yield executor
    executor.shutdown(cancel_futures=True)


def result(future):
    return future.result(LIMIT)


def test_ray_keeps_a_worker_process_for_shipped_steps_and_replaces_it_after_others(local):
    first = result(local.submit(Outcome, "done")), result(local.submit(os.getppid))
    assert first == (Outcome("done"), result(local.submit(os.getppid)))
    kept = result(local.submit(os.getpid))
    assert kept == result(local.submit(os.getpid)) != os.getpid()
    spent = Outcome("done", spent=True)
    assert spent == result(local.submit(Outcome, "done", spent=True))
    fresh = result(local.submit(os.getpid))
    result(local.submit(Outcome, "failed"))
    assert len({kept, fresh, result(local.submit(os.getpid))}) == 3


def test_ray_has_one_slot_where_a_step_takes_all_cores_and_gives_it_its_threads(local):
    assert (local.slots(), result(local.submit(os.getenv, "OMP_NUM_THREADS"))) == (1, "3")


def test_what_a_task_raises_arrives_as_it_was_raised(local):
    with pytest.raises(ValueError, match="invalid literal") as raised:
        result(local.submit(int, "x"))
    assert type(raised.value) is ValueError


def test_a_step_that_kills_its_worker_dies_as_in_the_pool(local):
    with pytest.raises(WorkerDiedError, match="the worker process died: the step ended it with exit code 3"):
        result(local.submit(os._exit, 3))
    assert result(local.submit(int, "1")) == 1


@pytest.mark.slow("Ray starts another process, which takes seconds")
def test_a_step_that_kills_the_process_of_ray_is_a_death_and_no_lost_node(local):
    ray_process = psutil.Process(result(local.submit(os.getpid))).parents()
    future = local.submit(time.sleep, 60)
    time.sleep(1)
    next(process for process in ray_process if "ray::" in " ".join(process.cmdline())).kill()
    with pytest.raises(WorkerDiedError) as raised:
        result(future)
    assert not isinstance(raised.value, NodeLostError)
    assert result(local.submit(int, "1")) == 1


def test_a_task_says_which_node_it_ran_on_and_the_last_one_is_not_left_out(local):
    future = local.submit(int, "1")
    result(future)
    (node,) = local._nodes()
    assert (future.node, local.leave_out(node.name), local.slots()) == (node.name, False, 1)


def test_tasks_go_to_the_nodes_that_are_not_left_out_by_their_cpus(local, monkeypatch):
    nodes = [Node("a" * 56, "a", 4, 0), Node("b" * 56, "b", 2, 0), Node("c" * 56, "c", 2, 0)]
    monkeypatch.setattr(ray_engine, "_nodes", lambda: nodes)
    monkeypatch.setattr(local, "_left_out", set())
    monkeypatch.setattr(local, "_placed", {})
    assert local._place(NodeFuture(), local._nodes()) == "SPREAD"
    assert local.leave_out("c")
    placed = [local._place(NodeFuture(), local._nodes()).node_id[0] for _ in range(6)]
    assert (Counter(placed), [node.name for node in local._nodes()]) == ({"a": 4, "b": 2}, ["a", "b"])


@pytest.mark.slow("Ray starts another process, which takes seconds")
def test_a_connection_that_ends_cancels_its_tasks_and_leaves_the_ray(local):
    import ray

    other = RayExecutor(limits=Limits(step_timeout=50))
    worker = psutil.Process(result(other.submit(os.getpid)))
    future = other.submit(time.sleep, 60)
    time.sleep(0.5)
    started = time.monotonic()
    other.shutdown(wait=False, cancel_futures=True)
    assert isinstance(future.exception(1), WorkerDiedError)
    worker.wait(10)
    assert (time.monotonic() - started < 10, ray.is_initialized()) == (True, True)
    assert result(local.submit(int, "1")) == 1


@pytest.mark.slow("it starts another server of workers, which takes seconds")
def test_a_step_that_takes_too_long_is_ended(local):
    short = RayExecutor(limits=Limits(step_timeout=1))
    with pytest.raises(ZSQBenchError, match="it ran for longer than 1 s, the limit for a step"):
        result(short.submit(time.sleep, 60))
    short.shutdown()


def test_plugin_files_travel_with_the_steps(local, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("# mine")
    config = WorkerConfig(tmp_path / "home", plugin_files=(plugin,))
    engine = Ray(workers=1)
    engine.check(config)
    plugin.unlink()
    (placed,) = result(engine.start().submit(operator.attrgetter("plugin_files"), config))
    assert (placed != plugin, placed.name) == (True, "mine.py")
    assert list((tmp_path / "home").iterdir()) == []  # what the nodes looked for is gone


@pytest.mark.slow("a node looks for seconds")
def test_a_data_root_that_nodes_do_not_see_ends_the_run_before_any_step(local, tmp_path):
    engine = Ray(workers=1)
    config = WorkerConfig(tmp_path / "home", data_root=tmp_path / "nowhere")
    with pytest.raises(ZSQBenchError, match=r"node [\d.]+ \(\w{8}\) does not see the data root .*nowhere; put it"):
        engine.check(config)


@pytest.mark.slow("it runs two suites")
def test_a_suite_on_ray_gives_what_one_process_gives(local, bench):
    check_rows(bench, "--engine", "ray", workers=1)


@pytest.mark.slow("it starts three nodes of a Ray, and one is lost, which takes half a minute to be seen")
def test_the_step_of_a_lost_node_is_done_on_another_and_the_table_stays_clean(bench):
    pytest.importorskip("ray", reason=ABSENT)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        lost = cluster.add_node(num_cpus=1)
        run = Started(bench, "generator: [waits, toy]", "--engine", "ray", "--address", cluster.address, more=WAITS)
        run.wait_for("started")
        cluster.add_node(num_cpus=1)
        cluster.remove_node(lost, allow_graceful=False)
        run.wait_until(lambda: (bench.folder / "calls.txt").read_text().count("waits") == 2)
        bench.write("go", "")
        out, err = run.process.communicate(timeout=LIMIT)
    finally:
        cluster.shutdown()
    assert (run.process.returncode, set(bench.statuses().values())) == (0, {"done"}), err
    assert "generate a waits seed 0 is tried again elsewhere: its node was lost" in err
    assert (out.startswith("# toysuite"), "aylet" in out) == (True, False), out
    assert bench.calls().count("waits") == 2


@pytest.mark.slow("it starts and ends a Ray twice")
def test_an_interrupted_run_on_ray_leaves_no_process_and_goes_on(bench):
    pytest.importorskip("ray", reason=ABSENT)
    run = Started(bench, "generator: [toy, waits]", "--engine", "ray", more=WAITS)
    run.wait_for("started")
    below = psutil.Process(run.process.pid).children(recursive=True)
    run.process.send_signal(signal.SIGINT)
    code, said = run.end()
    assert (code, list(bench.statuses().values())) == (130, ["done", "interrupted"]), said
    assert psutil.wait_procs(below, 10)[1] == []
    bench.write("go", "")
    said = bench.run("--engine", "ray", workers=1)
    assert (said.code, list(bench.statuses().values())) == (0, ["done", "done"]), said.err
