"""The requests that the harness will make for an experiment's tasks, and how long their prompts are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lm_eval.evaluator_utils import get_sample_size
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lm_eval_hybrid.decoding.request import require_chat_template
from lm_eval_hybrid.experiment.definition import Experiment, check_tasks, loading_data
from lm_eval_hybrid.harness.generation import GenerationSettings
from lm_eval_hybrid.models.sources import ModelSource

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

_DEFAULT_LIMIT = 256  # max_gen_toks of the harness


@dataclass(frozen=True)
class TaskRequests:
    """The requests of one task.

    Attributes:
        documents: of the task, within the limit.
        instances: requests, longest prompts first, which is the order in which they are decoded.
        prompts: tokens of each one's prompt, by the base's tokenizer, without a chat template of the thinking model.
        limit: max_gen_toks; 0 if nothing is generated.
    """

    task: str
    documents: int
    instances: "tuple[Instance, ...]"
    prompts: tuple[int, ...]
    limit: int


def tokenizer_of(source: ModelSource, model_args: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """A model's tokenizer, or the one that the arguments of HFLM name instead.

    Raises:
        HybridError: it cannot be loaded.
    """
    other = model_args.get("tokenizer")
    files = {} if other or not model_args.get("gguf_file") else {"gguf_file": model_args["gguf_file"]}
    with source.loading(needs_tokenizer=not other and not files):
        return AutoTokenizer.from_pretrained(
            other or source.name,
            revision=None if other else source.revision,
            trust_remote_code=bool(model_args.get("trust_remote_code")),
            **files,
        )


def requests(
    experiment: Experiment, manager: "TaskManager", tokenizer: PreTrainedTokenizerBase
) -> tuple[TaskRequests, ...]:
    """The requests of every task; groups are resolved to their tasks.

    Raises:
        HybridError: a task is unknown, its data cannot be loaded, or model `hybrid` refuses its settings.
    """
    check_tasks(manager, experiment.tasks)
    with loading_data(experiment.tasks):
        tasks = manager.load(list(experiment.tasks))["tasks"]
    built = []
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
        built.append(_task_requests(name, task.instances, tokenizer, experiment.seed if generates else None))
    return tuple(built)


def _task_requests(
    name: str, instances: "list[Instance]", tokenizer: PreTrainedTokenizerBase, seed: int | None
) -> TaskRequests:
    settings = [] if seed is None else [GenerationSettings.of(i.args[1], _DEFAULT_LIMIT, seed) for i in instances]
    # Greedy decoding gives one answer to all repeats of a request, so it is decoded once.
    sampled = any(each.sampling for each in settings)
    repeated = [instance for instance in instances for _ in range((instance.repeats or 1) if sampled else 1)]
    texts = [str(instance.args[0]) for instance in repeated]
    counts = [len(ids) for ids in tokenizer(texts)["input_ids"]] if texts else []
    order = sorted(range(len(repeated)), key=lambda i: -counts[i])
    return TaskRequests(
        task=name,
        documents=len({instance.doc_id for instance in instances}),
        instances=tuple(repeated[i] for i in order),
        prompts=tuple(counts[i] for i in order),
        limit=max((each.max_new_tokens for each in settings), default=0),
    )


def _in_template(
    tokenizer: PreTrainedTokenizerBase, history: list[dict[str, str]], add_generation_prompt: bool = True
) -> str:
    require_chat_template(tokenizer, "--apply_chat_template", "leave it out")
    text = tokenizer.apply_chat_template(
        history,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )
    return str(text)
