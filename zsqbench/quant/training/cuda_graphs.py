"""Work that a GPU repeats from a recording (a CUDA graph): small networks would wait for Python in each step."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before the one that is recorded: in the first, libraries take their memory, and compilers do their work."""

Results = Mapping[str, Tensor]


class RecordedFunction:
    """A function of tensors, called often with tensors of the same shapes; on a GPU it is recorded and played back.

    The recording is the same work on the same memory, so that results are those of plain calls, bit for bit. It keeps
    that memory until it goes. What else the function reads must lie where it lay, and numbers that it computes with are
    in `setting`: with another one it is recorded anew. A function that waits for the GPU cannot be recorded; it is
    called on, `note` is told, and nothing more is recorded in this process, whose allocator may still be in recording.
    """

    _possible: ClassVar[bool] = True

    def __init__(
        self, function: Callable[..., Results], device: torch.device, note: Callable[[str], None] = lambda _: None
    ) -> None:
        """`function` takes the setting and the tensors, of which some may be none."""
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
        """Call it on the stream that is recorded later."""
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            results = self._function(setting, *inputs)
        current.wait_stream(stream)
        return results

    def _record(self, stream: torch.cuda.Stream, setting: float, *inputs: Tensor | None) -> torch.cuda.CUDAGraph | None:
        """The recording, or none where there cannot be one."""
        self._graph, self._results = None, {}  # the memory of an earlier one is free again
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
            cause = error.__context__ or error  # the end of a recording that failed says that it did
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            self._note(f"steps are not recorded on the GPU: {reason}")
            self._stream, self._inputs, RecordedFunction._possible = None, [], False
            return None
        return graph

    def _take(self, inputs: Sequence[Tensor | None]) -> None:
        """Put these where the recording reads."""
        shapes, expected = ([None if x is None else x.shape for x in each] for each in (inputs, self._inputs))
        if shapes != expected:
            raise ValueError(f"tensors of shapes {shapes} cannot be played back; those recorded had {expected}")
        for kept, given in zip(self._inputs, inputs, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given)
