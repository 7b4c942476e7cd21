"""The session that a worker keeps from step to step: plugins, networks, contexts, the store."""

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from weakref import WeakKeyDictionary

from zsqbench.errors import (
    DivergedError,
    OutdatedError,
    OutOfMemoryError,
    OutOfResourcesError,
    ZSQBenchError,
    is_memory_shortage,
)
from zsqbench.execution.isolation import forbid_opening, peak_memory
from zsqbench.execution.kernels import kept_kernels
from zsqbench.execution.reporter import Reporter
from zsqbench.hashing import digest_of, file_digest
from zsqbench.methods import Kind, Method, ModelSpec, Pretrained, Settings, StepContext, Task, TaskContext
from zsqbench.plugins import Catalog, Provided, load_plugins, shipped_plugins
from zsqbench.reports.results import environment
from zsqbench.steps.step import Job, MethodCall
from zsqbench.store import Store
from zsqbench.zoo.models import BUILT

if TYPE_CHECKING:
    import torch
    from torch import nn

GIB = 2**30

NETWORKS = 4
"""The number of networks that a worker keeps."""

DATA = "data"
"""The folder of the home in which tasks keep files that they make."""

Isolation = Literal["auto", "step", "worker"]
"""Steps that get their own process: steps of methods that are not shipped (auto), all (step), or none (worker)."""

this_environment = cache(environment)


@dataclass(frozen=True)
class WorkerConfig:
    """The settings of all steps of an invocation that are in no identity, such as where they run."""

    home: Path
    data_root: Path | None = None
    plugin_files: tuple[Path, ...] = ()
    plugin_sources: tuple[str | None, ...] = ()
    """Their hashes when the suite was loaded. The code that runs must be the code in the keys."""
    without: tuple[str, ...] = ()
    device: str = "auto"
    isolation: Isolation = "auto"
    memory: int | None = None
    """Memory limit of a worker in bytes. None: no limit."""


class Session:
    """The objects that a worker keeps from step to step: plugins, and the networks that it loaded last."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.store = Store(config.home)
        self.loaded_others = False
        """True once plugins that are not shipped with zsqbench were imported in this process."""
        self.networks: dict[tuple[str, str, str], Pretrained] = {}
        self._digests: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        """Digests of networks as loaded. Hashing all weights for each step would take longer than many steps."""

    @cached_property
    def catalog(self) -> Catalog:
        """All plugins. This imports plugins that are not shipped. Raises OutdatedError if a file changed."""
        self.loaded_others = True
        catalog = load_plugins(self.config.plugin_files, self.config.without)
        for file, source in zip(self.config.plugin_files, self.config.plugin_sources, strict=False):
            if source not in {plugin.source for plugin in catalog.plugins}:
                raise OutdatedError(f"plugin file {file} was changed during the run; run again")
        return catalog

    @cached_property
    def device(self) -> "torch.device":
        """The device on which steps compute."""
        import torch

        if self.config.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.config.device)

    def run(self, job: Job, *notes: str) -> None:
        """Do the step and write its artifact, with these notes. Raises OutOfMemoryError if memory is full."""
        reporter = Reporter(self.store.partial(job.key), self._rng(job.seed))
        for note in notes:
            reporter.note(note)
        compiles = job.settings.compile and job.network is not None
        try:
            with kept_kernels(self.config.home, job.network or "") if compiles else contextlib.nullcontext():
                job.run(self, reporter)
        except OutOfResourcesError:
            raise  # the checkpoint stays, so that the step can resume when there is space
        except Exception as error:
            if is_memory_shortage(error):
                raise OutOfMemoryError(self._shortage(job)) from error
            reporter.clear()  # the next attempt starts from the beginning
            curves = reporter.keep_curves()
            if not isinstance(error, DivergedError):
                raise
            kept = {"it is": reporter.keep_last_good(error.state), "its curves are": curves}
            # relative, so that a failure has the same text on all machines
            places = [f"{what} in {path.relative_to(self.config.home)}" for what, path in kept.items() if path]
            raise ZSQBenchError(
                f"{'; '.join([str(error), *places])} of the home folder" if places else str(error)
            ) from error
        reporter.clear()

    def with_less_memory(self, job: Job) -> tuple[Job, str] | None:
        """The job with half the values of options that change no number, and a note. None: it has no such options."""
        called = self.called(job)
        lower = {
            name: value / 2 if isinstance(value, float) else value // 2
            for name in called.memory_options
            if name in called.execution_options and (value := getattr(called, name))
        }
        if not any(lower.values()):
            return None
        said = ", ".join(f"{name} {value:g} instead of {getattr(called, name):g}" for name, value in lower.items())
        return job.calling(lower), f"memory was full; done with {said}, which changes no number"

    def called(self, job: Job) -> Method:
        """The method that does the work of a step: the method of its axis, or the task."""
        kind: Kind = job.axis or "task"
        return self.method(kind, job.call)

    def _shortage(self, job: Job) -> str:
        taken = f"{peak_memory(self.device) / GIB:.1f} GiB taken"
        limit = "" if self.config.memory is None else f", and --memory allows {self.config.memory / GIB:g}"
        advice = self.called(job).advice_on_memory()
        return f"{self.device} ran out of memory ({taken}{limit}){f': {advice}' if advice else ''}"

    def method(self, kind: Kind, call: MethodCall) -> Method:
        """A method with its options."""
        found = self.provided(kind, call.method)
        return found.method.model_validate_json(json.dumps(call.options), strict=True)

    def provided(self, kind: Kind, name: str) -> Provided:
        """The class of a method and its plugin. If no shipped plugin has it, the other plugins are loaded."""
        found = shipped_plugins().provided.get((kind, name))
        if found is None or found.plugin.name in self.config.without:
            found = self.catalog.find(kind, name)
        return found

    def task(self, job: Job) -> Task:
        """The task of a step."""
        return cast("Task", self.method("task", job.task))

    def teacher(self, job: Job, reporter: Reporter | None = None) -> Pretrained:
        """The network. The last few networks are kept, by the request and the identity that they had.

        The reporter keeps the notes of the task while it loads a network. Raises ZSQBenchError if it is not the network
        that was resolved.
        """
        asked = (job.model.model_dump_json(), job.task.model_dump_json())
        if job.network is None or (*asked, job.network) not in self.networks:
            pretrained = self._load(job, reporter or Reporter(self.store.partial(job.key), self._rng(0)))
            identity = self.identity(job, pretrained)
            if job.network not in (None, identity):
                self.store.discard(job.resolve)
                raise OutdatedError(
                    f"network {job.model.name} changed after it was resolved{_where(job.model)}; run again to take it "
                    "as it is now"
                )
            if len(self.networks) >= NETWORKS:
                del self.networks[next(iter(self.networks))]
            self.networks[*asked, identity] = pretrained
            return pretrained
        return self.networks[*asked, job.network]

    @staticmethod
    def identity(job: Job, pretrained: Pretrained) -> str:
        """Identity of the network, for the keys of steps: its weights, its preprocessing, the code that defines it."""
        from zsqbench.zoo.usermodules import digests

        if job.model.file is None:
            return digest_of([pretrained.digest(), job.model.base])
        imported = sorted(digest for _, digest in digests(job.model.file))
        return digest_of([pretrained.digest(), file_digest(job.model.file), job.model.build, imported])

    def _load(self, job: Job, reporter: Reporter) -> Pretrained:
        pretrained = self.task(job).load(job.model, self.context(job, reporter))
        pretrained.module.eval().requires_grad_(False).to(self.device)
        return pretrained

    @contextlib.contextmanager
    def method_call(
        self, job: Job, method: Method, watched: Sequence[str], settings: Settings | None = None
    ) -> Iterator[Pretrained]:
        """A copy of the teacher for one call, under the settings. The call must not change it or open task data."""
        import torch

        original, settings = self.teacher(job), settings or job.settings
        digest = self._digest(original)
        module = copy.deepcopy(original.module)
        if settings.layout == "channels_last":
            module = module.to(memory_format=torch.channels_last)
        teacher = Pretrained(**(vars(original) | {"module": module}))
        # without its cache: it would keep using the first bf16 copy of weights that the method trains
        is_half = settings.precision == "bf16"
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=is_half, cache_enabled=False)
        with forbid_opening([*watched, str((self.config.home / DATA).resolve())], method.name), autocast:
            yield teacher
        if teacher.digest() != digest:
            raise ZSQBenchError(f"{method.kind} {method.name} changed the teacher's weights or buffers; it must not")

    def _digest(self, pretrained: Pretrained) -> str:
        if pretrained.module not in self._digests:
            self._digests[pretrained.module] = pretrained.digest()
        return self._digests[pretrained.module]

    def context(self, job: Job, reporter: Reporter) -> StepContext:
        """The context that a method gets in addition to its arguments."""
        return StepContext(self.device, job.seed, reporter.rng, job.settings, reporter)

    def task_context(self, job: Job, reporter: Reporter) -> TaskContext:
        """The context that a task gets. It also says where the data is."""
        context = vars(self.context(job, reporter))
        return TaskContext(**context, data_root=self.config.data_root, folder=self.config.home / DATA)

    def write(
        self,
        job: Job,
        reporter: Reporter,
        content: Mapping[str, Any],
        fill: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Write the artifact: the findings of the step, how they were made, curves, notes, and the files of `fill`.

        Raises OutOfResourcesError if the store cannot be written to.
        """
        manifest = {
            "kind": job.kind,
            "label": job.label,
            "job": job.model_dump(mode="json"),
            "seconds": time.perf_counter() - reporter.started,
            "peak_memory": peak_memory(self.device),
            "environment": this_environment() | {"device": str(self.device)},
            "content": dict(content),
            "curves": reporter.read_curves(),
            "notes": reporter.notes,
            "footnotes": reporter.footnotes,
        }
        try:
            self.store.write(job.kind, job.key, manifest, fill)
        except OSError as error:
            raise OutOfResourcesError(
                f"cannot write to the store {self.store.home}: {error.strerror or error}"
            ) from error
        except Exception as error:
            if "SafetensorError" in type(error).__name__:  # the error of safetensors for a full disk
                raise OutOfResourcesError(f"cannot write to the store {self.store.home}: {error}") from error
            raise

    def _rng(self, seed: int) -> "torch.Generator":
        import torch

        return torch.Generator(self.device).manual_seed(seed)


def _where(model: ModelSpec) -> str:
    """A hint where the weights of a network changed, if the suite does not name their file."""
    return f": {model.builder} gave other weights" if model.weights == BUILT else ""
