"""Traces from anywhere: samples of the harness, question and response in plain jsonl, our own files of traces.

Which of them a line is shows in the line itself:

- a sample of the harness (`--log_samples`) has `arguments` and `resps`. Any model and any generate_until task will
  do; what a document's filters repeat is read once, its repeats are traces of their own;
- a plain line has a question (the first of QUESTIONS that it has) and a response
  (`response` or `text`), and may have more. `answer` is never read: in most data it is the right answer;
- a file of our own (`traces.write`) begins with a line that says what made it, and may end in a torn one.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.traces.traces import Trace

# A trace's prompt is what the model read, so that name comes first.
QUESTIONS = tuple(dict.fromkeys(("prompt", *jsonl.QUESTION_FIELDS)))
RESPONSES = ("response", "text")
_ACCEPTED = f"one of {', '.join(QUESTIONS)} and one of {', '.join(RESPONSES)}"
_DELETE = "mend or delete the line"
_SAMPLES = "give samples_*.jsonl of a generate_until task, written with --log_samples"
log = logging.getLogger(__name__)


def read(paths: Sequence[Path]) -> list[Trace]:
    """The traces in some files, in their order, each once; empty responses are left out, with a warning.

    A prompt is what the model read, where the file has it; of a plain question it is the question; of a chat, as API
    models are given one, the messages' contents with an empty line between them.

    Raises:
        HybridError: for a file that cannot be read, a line that is no trace (as `path:line`), or no traces at all.
    """
    notes: Counter[str] = Counter()
    traces = list(dict.fromkeys(trace for path in paths for trace in _traces(path, notes)))
    for note, count in notes.items():
        log.warning("%d %s", count, note)
    if not traces:
        named = ", ".join(map(str, paths)) or "no file"
        raise HybridError(f"traces must hold at least one response that is not empty; found none in {named}; give more")
    return traces


def _traces(path: Path, notes: Counter[str]) -> Iterator[Trace]:
    ours = _says_what_made_it(next(jsonl.rows(path), (1, None))[1])
    for number, row in jsonl.rows(path, torn=ours):
        if ours and number == 1:
            continue
        where = f"{path}:{number}"
        if not isinstance(row, dict):
            raise HybridError(f"{where}: must be an object; found {row!r:.60}; give a sample, or {_ACCEPTED}")
        read_row = _sample if "resps" in row else _plain
        for prompt, text in read_row(row, where):
            trace = Trace(_prompt(prompt, where, notes), _unicode(text, where))
            if trace.text.strip():
                yield trace
            else:
                notes["responses are empty and left out"] += 1


def _says_what_made_it(row: Any) -> bool:
    return isinstance(row, dict) and {"max_new_tokens", "weights"} <= row.keys()


def _sample(row: dict[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    """Prompt and response of each request of a document, and of each of its repeats."""
    try:
        requests, responses = row["arguments"].values(), row["resps"]
        pairs = [
            (request["arg_0"], request["arg_1"], text)
            for request, repeats in zip(requests, responses, strict=True)
            for text in (repeats if isinstance(repeats, list) else [repeats])
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise HybridError(
            f"{where}: a sample must hold arguments.gen_args_0 (arg_0 and arg_1) and resps; found only part of it; "
            f"{_SAMPLES}"
        ) from None
    for prompt, settings, text in pairs:
        # The second argument of a log-likelihood is its continuation; a rolling one has none.
        if not isinstance(text, str) or not isinstance(settings, dict):
            raise HybridError(f"{where}: a sample's response must be text; found {text!r:.60}; {_SAMPLES}")
        yield prompt, text


def _plain(row: dict[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    question = next((key for key in QUESTIONS if key in row), None)
    response = next((key for key in RESPONSES if key in row), None)
    if question is None or response is None:
        gold = "; `answer` is not read, for it may be the right one" if response is None and "answer" in row else ""
        raise HybridError(f"{where}: a trace must have {_ACCEPTED}; found {list(row)!r:.80}{gold}; rename its keys")
    if not isinstance(row[response], str):
        raise HybridError(f"{where}: `{response}` must be text; found {row[response]!r:.60}; {_DELETE}")
    yield row[question], row[response]


def _prompt(value: Any, where: str, notes: Counter[str]) -> str:
    contents = [value] if isinstance(value, str) else _contents(value)
    prompt = "\n\n".join(contents)
    if not prompt.strip():
        raise HybridError(
            f"{where}: a prompt must be text or a chat's messages, not empty; found {value!r:.60}; {_DELETE}"
        )
    if len(contents) > 1:
        notes["prompts are chats of several messages, read as one text each"] += 1
    return _unicode(prompt, where)


def _contents(chat: Any) -> list[str]:
    """The contents of a chat's messages, in order; none where it is no chat.

    The harness writes a chat that it sends to an API as JSON in a list of its own.
    """
    if isinstance(chat, list) and len(chat) == 1 and isinstance(chat[0], str):
        try:
            chat = json.loads(chat[0])
        except (ValueError, RecursionError):
            return []
    messages = chat if isinstance(chat, list) else []
    contents = [message.get("content") if isinstance(message, dict) else None for message in messages]
    return contents if all(isinstance(content, str) for content in contents) else []


def _unicode(text: str, where: str) -> str:
    """The text itself: no tokenizer reads half of a surrogate pair, which JSON can hold.

    Raises:
        HybridError: for such a half.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HybridError(
            f"{where}: text must be Unicode; found half of a surrogate pair, {text[error.start]!r}; {_DELETE}"
        ) from None
    return text
