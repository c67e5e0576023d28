"""The harness's model `hybrid`: HFLM loads the two models, decoding answers, the harness sees strings.

HFLM itself is the base model; a second one is the thinking model, loaded only where the arm reads it. Requests are
begun longest prompt first, `--batch_size` at once, each making room for the next as it ends. With `auto` as many as the
free memory has room for; where it runs out all the same, half as many go on.
"""

import hashlib
import itertools
import json
import logging
import os
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
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.harness import answers_file
from lm_eval_hybrid.harness import response_cache as cache
from lm_eval_hybrid.harness import token_log as sidecar
from lm_eval_hybrid.harness.answers_file import AnswersFile
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.harness.batches import check_sizes, in_batches, rows_that_fit
from lm_eval_hybrid.harness.empty import show_empty_runs_plainly
from lm_eval_hybrid.harness.generation import Settings, check_not_empty, check_room
from lm_eval_hybrid.harness.loading import Loader, LocalModel
from lm_eval_hybrid.harness.prompts import Templated, ThinkingReader
from lm_eval_hybrid.harness.records import HybridAnswer, Totals
from lm_eval_hybrid.harness.remote import ROWS
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.ndif.client import Traffic
from lm_eval_hybrid.models.sources import Source

_log = logging.getLogger(__name__)

# A continuation to score: (context, continuation) as text, None for running text, then both as the base's token ids.
_Scored = tuple[tuple[str, str] | None, list[int], list[int]]
# Arguments that change how fast answers come, not which.
_WITHOUT_EFFECT = {"device", "batch_size", "max_batch_size"}


@dataclass(frozen=True)
class _Job:
    """A request ready to be answered.

    Attributes:
        thought_open: its answer begins inside a thought.
        key: of its answer where answers are kept.
    """

    instance: Instance
    request: Request
    thought_open: bool
    key: str


@register_model("hybrid")
class HybridLM(LocalModel):
    """A base model steered where a thinking model says so.

    Args:
        arguments: ours are those of `lm_eval_hybrid.harness.arguments.HybridArguments`, none needed; the others
            (`dtype`, `device`, `batch_size`, `trust_remote_code`, `revision` of the base, ...) are HFLM's.

    Raises:
        HybridError: for every mistake in the arguments, in one line; uncaught it is shown without stack trace.
    """

    def __init__(self, **arguments: Any) -> None:
        show_empty_runs_plainly()
        sidecar.install()
        ours, theirs = HybridArguments.split(arguments)
        check_sizes(theirs)
        theirs["device"] = theirs.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if several and (theirs["device"] == "cpu" or not torch.cuda.is_available()):
            # accelerate takes processes without a GPU for single ones, unless it is told.
            os.environ.setdefault("ACCELERATE_USE_CPU", "true")
        suite = ours.suite()
        policy = ours.policy(suite.manifest.steering)  # what is wrong with it is said before anything is loaded
        self._revision, self._theirs = theirs.pop("revision", None), theirs
        base = Source.choose("base", ours.base, suite.manifest.base, self._revision)
        thinking = Source.choose("thinking", ours.thinking, suite.manifest.thinking)
        self._loader = Loader(ours, theirs)
        self._loader.place({base: policy.reads_base} | ({thinking: True} if policy.reads_thinking else {}))
        with base.loading(needs_tokenizer="tokenizer" not in theirs):
            super().__init__(**self._loader.arguments(base))
        self._join_ranks()
        self._base = base
        self._thinking_model: tuple[Source, HFLM] | None = None
        self._configure(ours, suite)

    def switch_arm(self, ours: HybridArguments, kept: AnswersFile | None = None) -> None:
        """Take another arm, or other steering, of the models that are loaded; totals begin anew.

        Args:
            kept: answers are written there as they are finished, and those that are there already are not made again.

        Raises:
            HybridError: for other models, or what `HybridArguments` refuses.
        """
        suite = ours.suite()
        base = Source.choose("base", ours.base, suite.manifest.base, self._revision)
        if base != self._base:
            raise HybridError(
                f"the base model must be the one that is loaded, {self._base.name}; found {base.name}; run the other "
                "one by itself"
            )
        self._loader.check(ours)
        self._configure(ours, suite, kept)

    def _configure(self, ours: HybridArguments, suite: Suite, kept: AnswersFile | None = None) -> None:
        manifest, policy = suite.manifest, ours.policy(suite.manifest.steering)
        self._arm, self._suite, self._policy, self._strict, self._kept = ours.arm, suite, policy, ours.strict, kept
        source = Source.choose("thinking", ours.thinking, manifest.thinking)
        self._thinking: ThinkingReader | None = None
        if policy.reads_thinking:
            model = self._load_thinking(source)
            self._thinking = ThinkingReader.choose(model, ours.thinking_prompt, manifest.prompt)
        self._decoder = self._build_decoder()
        # Where the thinking model alone is read, what is scored is in its tokens; the harness has made the base's.
        self._own_words = (
            self._thinking is not None
            and not policy.reads_base
            and self._thinking.model.tokenizer.get_vocab() != self.tokenizer.get_vocab()
        )
        self._totals = Totals()
        self._totals_of_others: list[Totals] = []
        self._traffic_of_others: list[dict[str, Traffic]] = []
        self._identity = {
            "version": __version__,
            "arm": ours.arm,
            "bundle": suite.identity,
            "base": self._loader.identity(self._base, self.config),
            "thinking": self._loader.identity(source, self._thinking.model.config) if self._thinking else None,
            "policy": asdict(policy),
            "thinking_prompt": self._thinking.form if self._thinking else None,
            "model_args": {name: str(value) for name, value in self._theirs.items() if name not in _WITHOUT_EFFECT},
        }
        if kept is not None:
            kept.open(self._identity)

    def _load_thinking(self, source: Source) -> HFLM:
        """The thinking model, loaded once: the first arm that reads it has it loaded."""
        if self._thinking_model is None or self._thinking_model[0] != source:
            self._thinking_model = None  # makes room
            with source.loading():
                self._thinking_model = source, LocalModel(**self._loader.arguments(source))
        return self._thinking_model[1]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer the requests: a `HybridAnswer` each, in their order.

        Raises:
            HybridError: before any is answered, where one is empty, too long, or asks for what is not known here.
        """
        repeats: Counter[int] = Counter()
        jobs: dict[tuple[int, int], _Job] = {}
        asked = []
        for instance in requests:
            # A repeated request is one object several times. Greedily all its answers are the same; and where ranks
            # have unequal shares the harness repeats one beyond that: it is answered, and counted, once.
            repeat = min(repeats[id(instance)], (instance.repeats or 1) - 1)
            repeats[id(instance)] += 1
            job = jobs.get((id(instance), repeat)) or self._job(instance, repeat)
            key = id(instance), repeat if job.request.sampling else 0
            jobs.setdefault(key, job)
            asked.append(key)
        order = sorted(jobs, key=lambda key: -len(jobs[key].request.prompt.base_ids))
        answers = {order[i]: answer for i, answer in self._answers([jobs[key] for key in order], disable_tqdm)}
        return [answers[key] for key in asked]

    def _answers(self, jobs: list[_Job], disable_tqdm: bool) -> Iterator[tuple[int, HybridAnswer]]:
        """(index of a job, its answer), as they are finished."""
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(jobs), disable=hidden, desc="Running generate_until requests") as progress:
            for i, answer in itertools.chain(self._kept_answers(jobs), self._new_answers(jobs)):
                self.cache_hook.add_partial("generate_until", jobs[i].instance.args, answer)
                progress.update()
                yield i, answer

    def _kept_answers(self, jobs: list[_Job]) -> Iterator[tuple[int, HybridAnswer]]:
        """Those that an interrupted run has left."""
        if self._kept is None:
            return
        for i, job in enumerate(jobs):
            generation = self._kept.get(job.key)
            if generation is not None:
                self._totals.add(generation, made=False)
                yield i, self._answer(job, generation)

    def _new_answers(self, jobs: list[_Job]) -> Iterator[tuple[int, HybridAnswer]]:
        """Those that are made now."""
        left = [i for i, job in enumerate(jobs) if self._kept is None or job.key not in self._kept]
        requests = [jobs[i].request for i in left]
        slots = self._rows(max((request.tokens for request in requests), default=0))
        start = time.perf_counter()
        for place, generation in self._decoder.stream(requests, slots):
            job = jobs[left[place]]
            self._totals.add(generation)
            if self._kept is not None:
                self._kept.add(job.key, generation)
            yield left[place], self._answer(job, generation)
        self._totals.seconds += time.perf_counter() - start

    def _answer(self, job: _Job, generation: Generation) -> HybridAnswer:
        return HybridAnswer(
            generation.text,
            generation,
            self._arm,
            self._suite.identity,
            job.thought_open,
            compared=self._policy.reads_base,
            words=self._words(generation),
        )

    def _words(self, generation: Generation) -> dict[int, str]:
        """What the choices read as that were not taken. Where the base is not run, what is chosen is taken."""
        choices = {
            choice
            for record in generation.records
            for choice in (record.base_choice, record.thinking_choice)
            if record.base_choice is not None and choice not in (None, record.token)
        }
        return {choice: self.tokenizer.decode([choice]) for choice in sorted(choices)}

    def _loglikelihood_tokens(
        self, requests: list[_Scored], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """What HFLM's `loglikelihood` and `loglikelihood_rolling` score with, per (texts, context, continuation).

        The hybrid's distributions are those of the tokens it would choose among (DESIGN, section 2); the base arm is
        scored by HFLM. Running text, in `loglikelihood_rolling`, is no turn of a chat: the thinking model reads it as
        it is.
        """
        if self._arm == "base" and "base" not in self._loader.remote:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        longest = max((len(context) + len(continuation) for _, context, continuation in requests), default=0)
        size = override_bs or self._rows(longest)
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
        """The base tokenizer's template, which the thinking model then gets as well.

        Raises:
            HybridError: the base tokenizer has none.
        """
        if not self.tokenizer.chat_template:
            raise HybridError(
                f"--apply_chat_template needs a base tokenizer with a chat template; found none in {self.pretrained}; "
                "leave it out (thinking_prompt=chat gives the thinking model its own)"
            )
        return Templated(super().apply_chat_template(chat_history, add_generation_prompt))

    @property
    def tokenizer_name(self) -> str:
        """Part of the name of a request cache: not HFLM's, whose contexts do not say that they are in a template."""
        return f"hybrid__{super().tokenizer_name}"

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Called with the response cache, before anything is asked: refuses one that another policy filled."""
        if cache_hook.dbdict is not None:
            cache.guard(cache_hook.dbdict, self._identity)
        super().set_cache_hook(cache_hook)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Every rank's `obj`, on rank `dst`; our totals travel with it, each answer's once.

        A collective call of our own would hang: a rank whose answers are all in the response cache never generates.
        """
        traffic = {role: replace(model.traffic) for role, model in self._loader.remote.items()}
        gathered = super().gather_object((obj, self._totals, traffic), dst)
        if gathered is None:
            self._totals = Totals()
            self._taken_traffic()
            return None
        others = [part for rank, (_, *part) in enumerate(gathered) if rank != dst]
        self._totals_of_others += [totals for totals, _ in others]
        self._traffic_of_others += [traffic for _, traffic in others]
        return [theirs for theirs, *_ in gathered]

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model, under `config`. Asking ends a run: totals begin anew."""
        totals = Totals.of([self._totals, *self._totals_of_others])
        self._totals, self._totals_of_others = Totals(), []
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
            "hybrid_requests": {model.name: asdict(model.traffic.taken()) for model in self._loader.remote.values()},
            "hybrid_policy": self._identity["policy"],
            "hybrid_fingerprint": hashlib.sha256(canonical.encode()).hexdigest(),
            "hybrid_totals": totals.summary(),
        }

    def _taken_traffic(self) -> dict[str, dict[str, float]]:
        """What was asked of servers by all ranks, by model; it is counted anew from here on."""
        others, self._traffic_of_others = self._traffic_of_others, []
        return {
            model.name: asdict(Traffic.of([model.traffic.taken(), *(traffic[role] for traffic in others)]))
            for role, model in self._loader.remote.items()
        }

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
            _log.warning("The models may not be those that %s was made with: %s", self._suite.identity, differences)
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
        settings = Settings.of(generation_kwargs, self.max_gen_toks, self._policy.seed)
        sampling = None if settings.sampling is None else replace(settings.sampling, repeat=repeat)
        base_ids = thinking_ids = self.tok_encode(context)
        if self._policy.reads_base:
            check_room(instance, "base", len(base_ids), settings, self.max_length)
        thought_open = False
        if self._thinking is not None:
            text = self._thinking.text(context, isinstance(context, Templated))
            thinking_ids = self._thinking.ids(text)
            check_room(instance, "thinking", len(thinking_ids), settings, self._thinking.model.max_length)
            # Only where every token is the thinking model's own does its answer go on with the thought.
            thought_open = self._arm == "thinking" and thought_is_open(text)
        prompt = Prompt(base_ids, thinking_ids)
        request = Request(prompt, settings.max_new_tokens, settings.stop, sampling)
        return _Job(instance, request, thought_open, answers_file.key(context, generation_kwargs, repeat))

    def _score(self, batch: list[_Scored]) -> list[tuple[float, bool]]:
        prompts, continuations = [], []
        for texts, context_ids, continuation in batch:
            thinking_ids = context_ids
            if self._thinking is not None:
                if texts is None:
                    text = self.tok_decode(context_ids)
                else:
                    # White space at its end has moved from the context to the continuation.
                    text = self._thinking.text(texts[0].rstrip(), isinstance(texts[0], Templated))
                thinking_ids = self._thinking.ids(text)
                if self._own_words:
                    continuation = self._thinking.continuation_ids(text, self.tok_decode(continuation))
            prompts.append(Prompt(context_ids, thinking_ids))
            continuations.append(continuation)
        return self._decoder.score(prompts, continuations)

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        """HFLM's way to a size for `auto`, which knows of one model only."""
        return self._rows(self.max_length)

    def _rows(self, tokens: int) -> int:
        """How many texts of so many tokens to work on at once."""
        if self.batch_size != "auto":
            return int(self.batch_size)
        if self._loader.remote:
            return ROWS
        models = [self.model, *([self._thinking.model.model] if self._thinking else [])]
        return rows_that_fit(models, max(1, tokens), int(self.max_batch_size))
