"""Requests of tasks, as the harness itself would ask them."""

import lm_eval.tasks
import pytest

from lm_eval_hybrid import autoload
from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.experiment.definition import Experiment
from lm_eval_hybrid.experiment.estimate.documents import TaskRequests, requests, tokenizer_of
from lm_eval_hybrid.models.sources import ModelSource
from tests.tiny_system import CHAT_TEMPLATE, tiny_tokenizer


def asked(tokenizer: object = None, **given: object) -> TaskRequests:
    autoload.register()
    experiment = Experiment(**{"behaviors": "embedded", "tasks": ("gsm8k_embedded",), "arms": ("base",), **given})
    (found,) = requests(experiment, lm_eval.tasks.TaskManager(), tokenizer or tiny_tokenizer())
    return found


def test_prompts_are_tokenised_as_they_are() -> None:
    found = asked(limit=3)
    assert (found.task, found.documents, found.limit) == ("gsm8k_embedded", 3, 400)
    # A token is a byte there.
    assert found.prompts == tuple(len(instance.args[0]) for instance in found.instances)
    assert list(found.prompts) == sorted(found.prompts, reverse=True)


def test_a_share_of_the_documents_and_other_settings() -> None:
    found = asked(limit=0.05, gen_kwargs={"max_gen_toks": 7}, apply_chat_template=False)
    assert (found.documents, found.limit) == (10, 7)


def test_the_chat_template_counts() -> None:
    plain, chat = asked(limit=2), asked(tiny_tokenizer(CHAT_TEMPLATE), limit=2, apply_chat_template=True)
    assert [chat - plain for chat, plain in zip(chat.prompts, plain.prompts, strict=True)] == [
        len("<user></user><assistant>")
    ] * 2
    with pytest.raises(HybridError, match="has no chat template, which --apply_chat_template needs"):
        asked(limit=2, apply_chat_template=True)


def test_the_tokenizer_is_the_models_own_or_the_one_that_is_named() -> None:
    source = ModelSource.named("base", "embedded:base")
    assert len(tokenizer_of(source, {})) == len(tokenizer_of(source, {"tokenizer": str(paths.embedded_dir() / "base")}))
    with pytest.raises(HybridError, match="cannot load the base model and its tokenizer"):
        tokenizer_of(ModelSource.named("base", "./nowhere"), {})
