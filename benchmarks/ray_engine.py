"""What a step costs on Ray beside its own work: 1,000 steps that do nothing, on 1, 2 and 4 nodes of this machine.

Run `python benchmarks/ray_engine.py` on an otherwise idle machine; it needs the extra `ray`. A node is a raylet with a
CPU, so as many steps are under way as there are nodes; the head has none. Each step goes the whole way: to a node, from
there to its worker process, and back. The processes that take steps are started before anything is timed. It prints two
lines for each number of nodes, with the bound that the project set itself: wall time per step, and CPU time per step of
all processes together, those of Ray included. `--quick` takes 20 steps on 1 and 2 nodes, to see that it runs: its
figures mean nothing.
"""

import argparse
import logging
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait

import psutil
from harness import show

from zsqbench.execution.ray_engine import RayExecutor
from zsqbench.steps import Outcome

BOUND = 50
"""Milliseconds."""


def run_steps(executor: RayExecutor, count: int) -> None:
    """Run so many steps, as the run loop does: one is submitted when one has ended."""
    slots, running = executor.slots(), set[Future[Outcome]]()
    for _ in range(count):
        if len(running) == slots:
            running = wait(running, return_when=FIRST_COMPLETED).not_done
        running.add(executor.submit(Outcome, "done"))
    for future in running:
        future.result()


def cpu_seconds() -> float:
    """CPU time of this process and of all below it, among them all nodes."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:  # it has ended meanwhile
            continue
        total += times.user + times.system
    return total


def measure(executor: RayExecutor, nodes: int, steps: int) -> None:
    """Time steps on so many nodes, and print."""
    for future in [executor.submit(time.sleep, 5) for _ in range(nodes)]:
        future.result()
    started, cpu = time.perf_counter(), cpu_seconds()
    run_steps(executor, steps)
    wall, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    show(f"a step that does nothing, nodes: {nodes}", 1000 * wall / steps, "ms", BOUND)
    show(f"its CPU time, nodes: {nodes}", 1000 * cpu / steps, "ms", BOUND)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    quick = parser.parse_args().quick
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        sys.exit("it needs Ray: pip install '.[ray]'")
    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        executor = RayExecutor(cluster.address)
        for nodes in (1, 2) if quick else (1, 2, 4):
            while len(cluster.worker_nodes) < nodes:
                cluster.add_node(num_cpus=1)
            measure(executor, nodes, 20 if quick else 1000)
        executor.shutdown()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
