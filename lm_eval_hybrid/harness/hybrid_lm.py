"""The harness's model `hybrid`.

The class is itself an HFLM, which holds the base model; a second HFLM holds the thinking model and is loaded only if
an arm reads it. Requests start in order of prompt length, longest first, `--batch_size` at a time; a finished one is
replaced by the next. `auto` picks the largest batch that fits; on out-of-memory the batch is halved and decoding goes
on.
"""

import hashlib
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import nnsight
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from lm_eval_hybrid import __version__
from lm_eval_hybrid.bundles.compatibility import check
from lm_eval_hybrid.bundles.suite import Suite
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.thoughts import thought_is_open
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.decoding.request import Prompt, Request, require_chat_template
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.harness import records
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.harness.generation import (
    GenerationSettings,
    check_continuation,
    check_fits_context,
    check_not_empty,
)
from lm_eval_hybrid.harness.loading import REMOTE_BATCH, Loader, LocalModel
from lm_eval_hybrid.harness.prompts import Templated, ThinkingReader
from lm_eval_hybrid.harness.records import HybridAnswer, RunReport, ignore_padding
from lm_eval_hybrid.harness.resuming import AnswersFile, guard_cache, request_key
from lm_eval_hybrid.harness.runtime import (
    check_batch_sizes,
    enable_cpu_ranks,
    in_batches,
    install_excepthook,
    largest_batch,
    processes,
)
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.sources import ModelSource

_log = logging.getLogger(__name__)

# A continuation to score: (context, continuation) as text, or None for running text; then both as base token ids.
_ScoreRequest = tuple[tuple[str, str] | None, list[int], list[int]]
# Arguments that affect speed, not answers.
_SPEED_ONLY = {"device", "batch_size", "max_batch_size"}


@dataclass(frozen=True)
class _Job:
    """A request, parsed and ready to decode.

    Attributes:
        thought_open: the answer begins inside a thought.
        key: identifies the answer in an answers file.
    """

    instance: Instance
    request: Request
    thought_open: bool
    key: str


@register_model("hybrid")
class HybridLM(LocalModel):
    """A base model, steered by behavior vectors at the positions that a thinking model selects.

    Args:
        arguments: those of `lm_eval_hybrid.harness.arguments.HybridArguments`, all optional; the rest (`dtype`,
            `device`, `batch_size`, `trust_remote_code`, `revision` of the base, ...) go to HFLM.

    Raises:
        HybridError: any mistake in the arguments, in one line; if uncaught, it is printed without a stack trace.
    """

    def __init__(self, **arguments: Any) -> None:
        install_excepthook()
        records.install_output_hooks()
        ours, theirs = HybridArguments.split(arguments)
        check_batch_sizes(theirs)
        theirs["device"] = theirs.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        if processes() > 1 and (theirs["device"] == "cpu" or not torch.cuda.is_available()):
            enable_cpu_ranks()
        suite = ours.suite()
        policy = ours.policy(suite.manifest.steering)  # before any model is loaded, so that errors come at once
        self._revision, self._theirs = theirs.pop("revision", None), theirs
        base = ModelSource.choose("base", ours.base, suite.manifest.base, self._revision)
        thinking = ModelSource.choose("thinking", ours.thinking, suite.manifest.thinking)
        self._loader = Loader(ours, theirs)
        self._loader.place({base: policy.reads_base} | ({thinking: True} if policy.reads_thinking else {}))
        with base.loading(needs_tokenizer="tokenizer" not in theirs):
            super().__init__(**self._loader.arguments(base))
        self._set_rank_from_accelerator()
        self._base = base
        self._thinking_model: tuple[ModelSource, HFLM] | None = None
        self._configure(ours, suite)

    def switch_arm(self, ours: HybridArguments, answers: AnswersFile | None = None) -> None:
        """Switch to another arm or other steering, keeping the loaded models. Totals are reset.

        Args:
            answers: finished answers are stored here, and answers already stored are reused.

        Raises:
            HybridError: other models than those loaded, or invalid arguments.
        """
        suite = ours.suite()
        base = ModelSource.choose("base", ours.base, suite.manifest.base, self._revision)
        if base != self._base:
            raise HybridError(
                f"{base.name} is not the loaded base model, {self._base.name}; all arms of a run share one base; use a "
                "separate run"
            )
        self._loader.check_same_backends(ours)
        self._configure(ours, suite, answers)

    def _configure(self, ours: HybridArguments, suite: Suite, answers: AnswersFile | None = None) -> None:
        manifest, policy = suite.manifest, ours.policy(suite.manifest.steering)
        self._arm, self._suite, self._policy, self._strict = ours.arm, suite, policy, ours.strict
        self._stored = answers
        source = ModelSource.choose("thinking", ours.thinking, manifest.thinking)
        self._thinking: ThinkingReader | None = None
        if policy.reads_thinking:
            model = self._load_thinking(source)
            self._thinking = ThinkingReader.choose(model, ours.thinking_prompt, manifest.prompt)
        self._decoder = self._build_decoder()
        # If only the thinking model is read, it scores its own tokens; the harness passes the base's.
        self._retokenizes = (
            self._thinking is not None
            and not policy.reads_base
            and self._thinking.model.tokenizer.get_vocab() != self.tokenizer.get_vocab()
        )
        self._report = RunReport()
        self._other_ranks: list[RunReport] = []
        self._identity = {
            "version": __version__,
            "arm": ours.arm,
            "bundle": suite.identity,
            "base": self._loader.identity(self._base, self.config),
            "thinking": self._loader.identity(source, self._thinking.model.config) if self._thinking else None,
            "policy": asdict(policy),
            "thinking_prompt": self._thinking.form if self._thinking else None,
            "model_args": {name: str(value) for name, value in self._theirs.items() if name not in _SPEED_ONLY},
        }
        if answers is not None:
            answers.open(self._identity)

    def _load_thinking(self, source: ModelSource) -> HFLM:
        """The thinking model, loaded when the first arm reads it and kept for later arms."""
        if self._thinking_model is None or self._thinking_model[0] != source:
            self._thinking_model = None  # frees memory before the next one is loaded
            with source.loading():
                self._thinking_model = source, LocalModel(**self._loader.arguments(source))
        return self._thinking_model[1]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer the requests in order, a `HybridAnswer` each.

        Raises:
            HybridError: a request is empty, too long, or has unsupported settings; raised before any is answered.
        """
        self._begin(requests)
        repeats: Counter[int] = Counter()
        jobs: dict[tuple[int, int], _Job] = {}
        keys = []
        for instance in requests:
            # The harness lists a request with repeats as one object several times, and pads a rank with fewer requests
            # by listing its last one again. Greedy repeats and padding are decoded, and counted, once.
            repeat = min(repeats[id(instance)], (instance.repeats or 1) - 1)
            repeats[id(instance)] += 1
            job = jobs.get((id(instance), repeat)) or self._job(instance, repeat)
            key = id(instance), repeat if job.request.sampling else 0
            jobs.setdefault(key, job)
            keys.append(key)
        order = sorted(jobs, key=lambda key: -len(jobs[key].request.prompt.base_ids))
        answers = {order[i]: answer for i, answer in self._answers([jobs[key] for key in order], disable_tqdm)}
        return [answers[key] for key in keys]

    def _answers(self, jobs: list[_Job], disable_tqdm: bool) -> Iterator[tuple[int, HybridAnswer]]:
        """Yield (index of a job, its answer) as answers finish."""
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(jobs), disable=hidden, desc="Running generate_until requests") as progress:
            for i, answer in itertools.chain(self._stored_answers(jobs), self._new_answers(jobs)):
                self.cache_hook.add_partial("generate_until", jobs[i].instance.args, answer)
                progress.update()
                yield i, answer

    def _stored_answers(self, jobs: list[_Job]) -> Iterator[tuple[int, HybridAnswer]]:
        """Answers left by an interrupted run."""
        if self._stored is None:
            return
        for i, job in enumerate(jobs):
            generation = self._stored.get(job.key)
            if generation is not None:
                self._report.totals.add(generation, resumed=True)
                yield i, self._answer(job, generation)

    def _new_answers(self, jobs: list[_Job]) -> Iterator[tuple[int, HybridAnswer]]:
        """Answers decoded now."""
        pending = [i for i, job in enumerate(jobs) if self._stored is None or job.key not in self._stored]
        requests = [jobs[i].request for i in pending]
        slots = self._batch_rows(max((request.tokens for request in requests), default=0))
        start = time.perf_counter()
        for index, generation in self._decoder.stream(requests, slots):
            job = jobs[pending[index]]
            self._report.totals.add(generation)
            if self._stored is not None:
                self._stored.add(job.key, generation)
            yield pending[index], self._answer(job, generation)
        self._report.totals.seconds += time.perf_counter() - start

    def _answer(self, job: _Job, generation: Generation) -> HybridAnswer:
        return HybridAnswer(
            generation.text,
            generation,
            self._arm,
            self._suite.identity,
            job.thought_open,
            compared=self._policy.reads_base,
            words=self._rejected_choices(generation),
        )

    def _rejected_choices(self, generation: Generation) -> dict[int, str]:
        """The text of the models' choices that were not emitted, by token id; none where the base is not run."""
        choices = {
            choice
            for record in generation.records
            for choice in (record.base_choice, record.thinking_choice)
            if record.base_choice is not None and choice not in (None, record.token)
        }
        return {choice: self.tokenizer.decode([choice]) for choice in sorted(choices)}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See the harness's `LM.loglikelihood`.

        Raises:
            HybridError: a continuation is empty.
        """
        self._begin(requests)
        for request in requests:
            check_continuation(request)
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """See the harness's `LM.loglikelihood_rolling`."""
        self._begin(requests)
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return scores

    def _begin(self, requests: Sequence[Instance]) -> None:
        """Ignore the harness's padding, and warn once if the embedded pair is given a task it was not trained for."""
        ignore_padding(requests)
        foreign = sorted({r.task_name for r in requests if r.task_name and not r.task_name.endswith("_embedded")})
        if self._base.embedded and foreign and not self._report.warnings:
            self._report.warnings.append(
                f"{', '.join(foreign)}: the embedded pair (two models of 0.9 million parameters) can solve only "
                "gsm8k_embedded and math500_embedded, so these results say nothing about the method; choose a bundle "
                "for real models with behaviors=NAME (lm-eval-hybrid behaviors list shows those installed)"
            )
            if self.rank == 0:
                _log.warning("%s", self._report.warnings[0])

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of context and continuation. HFLM cuts the ids of their joined text at the context's length, which
        leaves nothing to score where one token spans both: then the continuation is encoded alone."""
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        return context_ids, continuation_ids or self.tok_encode(continuation, add_special_tokens=False)

    def _loglikelihood_tokens(
        self, requests: list[_ScoreRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Score (texts, context ids, continuation ids); HFLM's `loglikelihood` and `loglikelihood_rolling` call it.

        Each position is scored by the distribution that the hybrid would choose from (docs/architecture.md). HFLM
        scores arm base itself. The running text of `loglikelihood_rolling` is not put into a chat template.
        """
        if self._arm == "base" and "base" not in self._loader.remote:
            scored: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return scored
        longest = max((len(context) + len(continuation) for _, context, continuation in requests), default=0)
        size = override_bs or self._batch_rows(longest)
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        scores: dict[int, tuple[float, bool]] = {}
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), disable=hidden, desc="Running loglikelihood requests") as progress:
            for i, score in in_batches(order, lambda batch: self._score([requests[i] for i in batch]), size):
                scores[i] = score
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], score)
                progress.update()
        return [scores[i] for i in range(len(requests))]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Apply the base tokenizer's template; the thinking model reads the same messages in its own template.

        Raises:
            HybridError: the base tokenizer has no chat template.
        """
        fix = "leave it out (thinking_prompt=chat applies the thinking model's own)"
        require_chat_template(self.tokenizer, "--apply_chat_template", fix)
        text = super().apply_chat_template(chat_history, add_generation_prompt)
        return Templated(text, chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """Part of a request cache's name. It differs from HFLM's, whose cached contexts are not marked `Templated`."""
        return f"hybrid__{super().tokenizer_name}"

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Receive the response cache, and refuse one that another policy filled."""
        if cache_hook.dbdict is not None:
            guard_cache(cache_hook.dbdict, self._identity)
        super().set_cache_hook(cache_hook)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Gather every rank's `obj` on rank `dst`, and the other ranks' reports with it.

        A separate collective call for reports would hang, since a rank whose answers are all cached never generates.
        """
        report = None if self.rank == dst else self._end_run()
        gathered = super().gather_object((obj, report), dst)
        if gathered is None:
            return None
        self._other_ranks += [report for _, report in gathered if report is not None]
        return [gathered_obj for gathered_obj, _ in gathered]

    def get_model_info(self) -> dict[str, Any]:
        """The entries that the results file has under `config`. The call ends a run: a new report is begun."""
        report = RunReport.of([self._end_run(), *self._other_ranks])
        self._other_ranks = []
        canonical = json.dumps(self._identity, sort_keys=True)
        return {
            **super().get_model_info(),
            "hybrid_version": __version__,
            "hybrid_nnsight_version": nnsight.__version__,
            "hybrid_arm": self._arm,
            "hybrid_without": list(self._suite.left_out),
            "hybrid_bundle": self._suite.identity,
            "hybrid_tensors": self._suite.tensors,
            "hybrid_base": self._identity["base"],
            "hybrid_thinking": self._identity["thinking"],
            "hybrid_thinking_prompt": self._identity["thinking_prompt"],
            "hybrid_requests": {
                model.name: asdict(report.traffic[role]) for role, model in self._loader.remote.items()
            },
            "hybrid_policy": self._identity["policy"],
            "hybrid_fingerprint": hashlib.sha256(canonical.encode()).hexdigest(),
            **report.entries(),
        }

    def _end_run(self) -> RunReport:
        """This rank's report, with the requests it sent to servers; a new report is begun."""
        report, self._report = self._report, RunReport()
        report.traffic = {role: model.traffic.pop() for role, model in self._loader.remote.items()}
        return report

    def _build_decoder(self) -> HybridDecoder:
        thinking = self._thinking.model if self._thinking else None
        match = check(
            self._suite.manifest,
            self.config,
            thinking.config if thinking else None,
            self.tokenizer,
            thinking.tokenizer if thinking else None,
            self._strict,
        )
        if match.differences:
            differences = "; ".join(match.differences)
            _log.warning("The models differ from those that %s was made with: %s", self._suite.identity, differences)
        remote = self._loader.remote
        return HybridDecoder(
            remote.get("base") or LocalBackend(self.model, self.tokenizer),
            (remote.get("thinking") or LocalBackend(thinking.model, thinking.tokenizer)) if thinking else None,
            Steering.from_suite(self._suite),
            self._policy,
        )

    def _job(self, instance: Instance, repeat: int) -> _Job:
        context, generation_kwargs = instance.args
        check_not_empty(instance)
        settings = GenerationSettings.of(generation_kwargs, self.max_gen_toks, self._policy.seed)
        self._report.sampling.add(settings.sampling)
        sampling = None if settings.sampling is None else replace(settings.sampling, repeat=repeat)
        base_ids = thinking_ids = self.tok_encode(context)
        if self._policy.reads_base:
            check_fits_context(instance, "base", len(base_ids), settings, self.max_length)
        thought_open = False
        if self._thinking is not None:
            text = self._thinking.text(context)
            thinking_ids = self._thinking.ids(text)
            check_fits_context(instance, "thinking", len(thinking_ids), settings, self._thinking.model.max_length)
            # In other arms the base speaks, and does not continue the thinking model's thought.
            thought_open = self._arm == "thinking" and thought_is_open(text)
        prompt = Prompt(base_ids, thinking_ids)
        request = Request(prompt, settings.max_new_tokens, settings.stop, sampling)
        return _Job(instance, request, thought_open, request_key(context, generation_kwargs, repeat))

    def _score(self, batch: list[_ScoreRequest]) -> list[tuple[float, bool]]:
        prompts, continuations = [], []
        for texts, context_ids, continuation in batch:
            thinking_ids = context_ids
            if self._thinking is not None:
                text = self.tok_decode(context_ids) if texts is None else self._thinking.text(texts[0], stripped=True)
                thinking_ids = self._thinking.ids(text)
                if self._retokenizes:
                    continuation = self._thinking.continuation_ids(text, self.tok_decode(continuation))
            prompts.append(Prompt(context_ids, thinking_ids))
            continuations.append(continuation)
        return self._decoder.score(prompts, continuations)

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        """Replaces HFLM's search of a size for `auto`, which considers one model only."""
        return self._batch_rows(self.max_length)

    def _batch_rows(self, tokens: int) -> int:
        """The batch size for sequences of `tokens` tokens."""
        if self.batch_size != "auto":
            return int(self.batch_size)
        if self._loader.remote:
            return REMOTE_BATCH
        models = [self.model, *([self._thinking.model.model] if self._thinking else [])]
        return largest_batch(models, max(1, tokens), int(self.max_batch_size))
