"""Work that a GPU repeats from a recording (a CUDA graph): small networks would wait for Python in each step."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before the one that is recorded: in the first, libraries take their memory, and compilers do their work."""

Results = Mapping[str, Tensor]


class Recorded:
    """A function of tensors, called often with tensors of the same shapes; on a GPU it is recorded and played back.

    The recording is the same work on the same memory, so that results are those of plain calls, bit for bit. What else
    the function reads must lie where it lay, and numbers that it computes with are in `setting`: with another one it is
    recorded anew. A function that waits for the GPU cannot be recorded; it is called on, and `note` is told.
    """

    def __init__(
        self, function: Callable[..., Results], device: torch.device, note: Callable[[str], None] = lambda _: None
    ) -> None:
        """`function` takes the setting and the tensors, of which some may be none."""
        self._function, self._note = function, note
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._setting: float | None = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor | None] = []
        self._results: Results = {}

    def __call__(self, setting: float, *inputs: Tensor | None) -> Results:
        """The function's results, which the next call may overwrite."""
        if self._stream is None:
            return self._function(setting, *inputs)
        if self._calls < WARM_UP:
            self._calls += 1
            return self._call_aside(self._stream, setting, *inputs)
        if self._graph is None or setting != self._setting:
            try:
                self._graph = self._record(self._stream, setting, *inputs)
            except RuntimeError as error:
                self._stream, self._graph = None, None
                self._note(f"steps are not recorded on the GPU: {str(error).splitlines()[0]}")
                return self._function(setting, *inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given)
        self._graph.replay()
        return self._results

    def _call_aside(self, stream: torch.cuda.Stream, setting: float, *inputs: Tensor | None) -> Results:
        """Call it on the stream that is recorded later."""
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            results = self._function(setting, *inputs)
        current.wait_stream(stream)
        return results

    def _record(self, stream: torch.cuda.Stream, setting: float, *inputs: Tensor | None) -> torch.cuda.CUDAGraph:
        self._graph, self._results = None, {}  # the memory of an earlier one is free again
        self._setting, self._inputs = setting, [None if given is None else given.clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        # other threads of a worker report progress meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._results = self._function(setting, *self._inputs)
        return graph
