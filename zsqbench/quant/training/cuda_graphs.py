"""Recordings of GPU work (CUDA graphs). Without them, small networks would wait for Python in each step."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before the recorded call. In the first, libraries allocate memory and compilers work."""

Results = Mapping[str, Tensor]


class RecordedFunction:
    """A function of tensors, called often with tensors of the same shapes. On a GPU it is recorded and played back.

    The recording is the same work on the same memory, so results equal those of plain calls, bit for bit. It keeps its
    memory as long as it exists. Other data that the function reads must keep their addresses. Numbers that it computes
    with are in `setting`; another setting makes a new recording. A function that waits for the GPU cannot be recorded.
    It is then called as usual, and `note` is told. Nothing more is recorded in this process, because its allocator may
    still be in recording mode.
    """

    _possible: ClassVar[bool] = True

    def __init__(
        self, function: Callable[..., Results], device: torch.device, note: Callable[[str], None] = lambda _: None
    ) -> None:
        """`function` takes the setting and the tensors, some of which may be None."""
        self._function, self._note = function, note
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda" and RecordedFunction._possible:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._setting: float | None = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor | None] = []
        self._results: Results = {}

    def __call__(self, setting: float, *inputs: Tensor | None) -> Results:
        """The function's results, which the next call may overwrite.

        Raises ValueError for tensors of other shapes than those that were recorded.
        """
        if self._stream is not None and self._calls < WARM_UP:
            self._calls += 1
            return self._call_aside(self._stream, setting, *inputs)
        if self._stream is not None and (self._graph is None or setting != self._setting):
            self._graph = self._record(self._stream, setting, *inputs)
        if self._graph is None:
            return self._function(setting, *inputs)
        self._take(inputs)
        self._graph.replay()
        return self._results

    def _call_aside(self, stream: torch.cuda.Stream, setting: float, *inputs: Tensor | None) -> Results:
        """Call it on the stream of the later recording."""
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            results = self._function(setting, *inputs)
        current.wait_stream(stream)
        return results

    def _record(self, stream: torch.cuda.Stream, setting: float, *inputs: Tensor | None) -> torch.cuda.CUDAGraph | None:
        """The recording, or None where recording fails."""
        self._graph, self._results = None, {}  # frees the memory of an earlier recording
        self._setting, self._inputs = setting, [None if given is None else given.clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            # the outer block restores the stream where the inner one fails; other threads report progress meanwhile
            with (
                torch.cuda.stream(stream),
                torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            ):
                self._results = self._function(setting, *self._inputs)
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a failed recording reports only that it failed
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            self._note(f"steps are not recorded on the GPU: {reason}")
            self._stream, self._inputs, RecordedFunction._possible = None, [], False
            return None
        return graph

    def _take(self, inputs: Sequence[Tensor | None]) -> None:
        """Copy these tensors to the addresses that the recording reads."""
        shapes, expected = ([None if x is None else x.shape for x in each] for each in (inputs, self._inputs))
        if shapes != expected:
            raise ValueError(f"tensors of shapes {shapes} cannot be played back; those recorded had {expected}")
        for kept, given in zip(self._inputs, inputs, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given)
