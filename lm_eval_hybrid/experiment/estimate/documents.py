"""The documents of an experiment's tasks as the harness asks them, and how long their prompts are."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lm_eval.evaluator_utils import get_sample_size
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.experiment.plan import Experiment
from lm_eval_hybrid.harness.generation import GenerationSettings
from lm_eval_hybrid.models.sources import ModelSource

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

_ANSWER = 256  # tokens, where a task does not say: the harness's own


@dataclass(frozen=True)
class TaskRequests:
    """What the harness asks for one task.

    Attributes:
        documents: of the task, within the limit.
        instances: requests, those with the longest prompts first, as they are begun.
        prompts: tokens of each one's prompt, in the base's words, before any chat template of the thinking model.
        limit: tokens that an answer has at most; 0 where nothing is generated.
    """

    task: str
    documents: int
    instances: "tuple[Instance, ...]"
    prompts: tuple[int, ...]
    limit: int


def tokenizer_of(source: ModelSource, theirs: dict[str, object]) -> PreTrainedTokenizerBase:
    """A model's tokenizer, or the one that the arguments of HFLM name instead.

    Raises:
        HybridError: it cannot be loaded.
    """
    other = theirs.get("tokenizer")
    files = {} if other or not theirs.get("gguf_file") else {"gguf_file": theirs["gguf_file"]}
    with source.loading(needs_tokenizer=not other and not files):
        return AutoTokenizer.from_pretrained(
            other or source.name,
            revision=None if other else source.revision,
            trust_remote_code=bool(theirs.get("trust_remote_code")),
            **files,
        )


def requests(
    experiment: Experiment, manager: "TaskManager", tokenizer: PreTrainedTokenizerBase
) -> tuple[TaskRequests, ...]:
    """Every task's requests, groups taken apart.

    Raises:
        HybridError: for tasks that nobody knows or whose data are not at hand, or settings that model `hybrid` does
            not take.
    """
    known = set(manager.all_tasks)
    if unknown := [task for task in experiment.tasks if task not in known]:
        raise HybridError(f"--tasks must be known to the harness; found {unknown[0]}; lm_eval ls tasks lists them")
    try:
        tasks = manager.load(list(experiment.tasks))["tasks"]
    except ConnectionError as error:  # what datasets and the hub raise
        raise HybridError(
            f"the data of {', '.join(experiment.tasks)} must be on the hub or in its cache; found: {error}; go online, "
            "or give them a folder (docs/tasks.md)"
        ) from error
    found = []
    for name, task in tasks.items():
        generates = task.get_config("output_type") == "generate_until"
        if generates and experiment.gen_kwargs:
            task.set_config(key="generation_kwargs", value=dict(experiment.gen_kwargs), update=True)
        shots = task.get_config("num_fewshot")
        if shots is None or (experiment.num_fewshot is not None and shots != 0):
            task.set_config(key="num_fewshot", value=experiment.num_fewshot or 0)
        task.set_fewshot_seed(seed=experiment.seed)
        task.build_all_requests(
            limit=get_sample_size(task, experiment.limit),
            system_instruction=experiment.system_instruction,
            apply_chat_template=experiment.apply_chat_template,
            chat_template=partial(_in_template, tokenizer) if experiment.apply_chat_template else None,
        )
        found.append(_of(name, task.instances, tokenizer, experiment.seed if generates else None))
    return tuple(found)


def _of(name: str, instances: "list[Instance]", tokenizer: PreTrainedTokenizerBase, seed: int | None) -> TaskRequests:
    settings = (
        [] if seed is None else [GenerationSettings.of(instance.args[1], _ANSWER, seed) for instance in instances]
    )
    # Greedily all answers to a request are the same: it is answered once.
    drawn = any(each.sampling for each in settings)
    asked = [instance for instance in instances for _ in range((instance.repeats or 1) if drawn else 1)]
    counts = (
        [len(ids) for ids in tokenizer([str(instance.args[0]) for instance in asked])["input_ids"]] if asked else []
    )
    order = sorted(range(len(asked)), key=lambda i: -counts[i])
    return TaskRequests(
        task=name,
        documents=len({instance.doc_id for instance in instances}),
        instances=tuple(asked[i] for i in order),
        prompts=tuple(counts[i] for i in order),
        limit=max((each.max_new_tokens for each in settings), default=0),
    )


def _in_template(
    tokenizer: PreTrainedTokenizerBase, history: list[dict[str, str]], add_generation_prompt: bool = True
) -> str:
    if not tokenizer.chat_template:
        raise HybridError("--apply_chat_template needs a base tokenizer with a chat template; found none; leave it out")
    return tokenizer.apply_chat_template(
        history,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )
