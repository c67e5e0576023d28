"""Where traces come from: decoded by the thinking model, or read from files.

A file has one of three formats, which each line itself shows:

- samples of the harness (`--log_samples`), of any model and any generate_until task, have `arguments` and `resps`. The
  same response under several filters counts once; repeats are separate traces;
- plain lines have a question (the first of QUESTIONS present) and a response (`response` or `text`), and may have more.
  `answer` is never read: in most data sets it is the correct answer;
- a file that `generate` wrote begins with a line about the model and its settings, and may end in an incomplete line.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.request import Prompt
from lm_eval_hybrid.discovery.traces.pair import ModelPair, fingerprint
from lm_eval_hybrid.discovery.traces.trace import Trace

BATCH = 50  # traces decoded, and written, together
# A trace's prompt is what the model read, so that name comes first.
QUESTIONS = tuple(dict.fromkeys(("prompt", *jsonl.QUESTION_FIELDS)))
RESPONSES = ("response", "text")
_ACCEPTED = f"one of {', '.join(QUESTIONS)} and one of {', '.join(RESPONSES)}"
_FIX_LINE = "fix or delete the line"
_FIX_SAMPLES = "give samples_*.jsonl of a generate_until task, written with --log_samples"
_FIX_FILE = "delete the file, or name another --work folder"
log = logging.getLogger(__name__)


def generate(path: Path, pair: ModelPair, prompts: Sequence[str], max_new_tokens: int) -> list[Trace]:
    """Decode a trace for each prompt, greedily with the thinking model, and append it to `path` (jsonl).

    Traces that are in `path` already are not decoded again, so an interrupted run continues. The file's first line
    identifies the model and the settings.

    Raises:
        HybridError: `path` contains anything but traces of this model, prompt form and length for these prompts; or,
            before decoding begins, a prompt leaves no room for an answer.
    """
    header = {
        "max_new_tokens": max_new_tokens,
        "prompt": pair.prompt.model_dump(),
        "weights": fingerprint(pair.thinking),
    }
    if not path.exists() or not path.stat().st_size:
        write_file(path, f"{json.dumps(header)}\n".encode())
    traces = _generated(path, header)
    if [trace.prompt for trace in traces] != list(prompts[: len(traces)]):
        raise HybridError(f"{path}: contains traces of other prompts; {_FIX_FILE}")
    context = pair.thinking.context_length
    ids = [pair.prompts(prompt).thinking_ids for prompt in prompts]
    room = [min(max_new_tokens, context - len(row)) for row in ids]
    for prompt, row, left in zip(prompts, ids, room, strict=True):
        if left < 1:
            raise HybridError(
                f"the prompt {prompt!r:.60} has {len(row)} tokens, which leaves no room in the thinking model's "
                f"context of {context} tokens; leave it out"
            )
    jsonl.cut_torn(path)
    # The thinking model is passed as `base` with gate `never`, so that it decodes plainly.
    decoder = HybridDecoder(pair.thinking, None, None, Policy(gate="never", coefficients=(1.0,), windows=(1,)))
    with path.open("a") as file, tqdm(total=len(prompts), initial=len(traces), desc="traces") as bar:
        for first in range(len(traces), len(prompts), BATCH):
            batch = slice(first, first + BATCH)
            answers = decoder.generate([Prompt(row, row) for row in ids[batch]], room[batch])
            new = [Trace(prompt, answer.text) for prompt, answer in zip(prompts[batch], answers, strict=True)]
            file.writelines(json.dumps(asdict(trace)) + "\n" for trace in new)
            file.flush()
            traces += new
            bar.update(len(new))
    return traces


def _generated(path: Path, header: dict[str, Any]) -> list[Trace]:
    """The complete traces in a file that `generate` wrote."""
    rows = jsonl.rows(path, torn=True)
    if next(rows, (1, None))[1] != header:
        raise HybridError(f"{path}: was not written with the same model, prompt and max_new_tokens; {_FIX_FILE}")
    traces = []
    for number, row in rows:
        if not (
            isinstance(row, dict) and row.keys() == {"prompt", "text"} and all(isinstance(v, str) for v in row.values())
        ):
            raise HybridError(f"{path}:{number}: found {row!r:.60}, which is no trace; {_FIX_FILE}")
        traces.append(Trace(**row))
    return traces


def read(paths: Sequence[Path]) -> list[Trace]:
    """Read the traces in some files, in order and without duplicates; empty responses are left out, with a warning.

    The prompt is what the model read, if the file has it, or else the question. A chat, as API models get one, becomes
    the contents of its messages with an empty line between them.

    Raises:
        HybridError: a file cannot be read, a line is no trace (as `path:line`), or there are no traces at all.
    """
    notes: Counter[str] = Counter()
    traces = list(dict.fromkeys(trace for path in paths for trace in _traces(path, notes)))
    for note, count in notes.items():
        log.warning("%d %s", count, note)
    if not traces:
        raise HybridError(
            f"found no response that is not empty in {', '.join(map(str, paths)) or 'no file'}; at least one is "
            "needed; give more traces"
        )
    return traces


def _traces(path: Path, notes: Counter[str]) -> Iterator[Trace]:
    first = next(jsonl.rows(path), (1, None))[1]
    generated = isinstance(first, dict) and {"max_new_tokens", "weights"} <= first.keys()
    for number, row in jsonl.rows(path, torn=generated):
        if generated and number == 1:
            continue
        where = f"{path}:{number}"
        if not isinstance(row, dict):
            raise HybridError(f"{where}: found {row!r:.60}, not an object; give a sample, or {_ACCEPTED}")
        read_row = _sample if "resps" in row else _plain
        for prompt, text in read_row(row, where):
            trace = Trace(_prompt(prompt, where, notes), _unicode(text, where))
            if trace.text.strip():
                yield trace
            else:
                notes["responses are empty and left out"] += 1


def _sample(row: dict[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    """Prompt and response of each request of a document, and of each repeat."""
    try:
        requests, responses = row["arguments"].values(), row["resps"]
        pairs = [
            (request["arg_0"], request["arg_1"], text)
            for request, repeats in zip(requests, responses, strict=True)
            for text in (repeats if isinstance(repeats, list) else [repeats])
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise HybridError(
            f"{where}: only part of a sample: it must have arguments.gen_args_0 (arg_0 and arg_1) and resps; "
            f"{_FIX_SAMPLES}"
        ) from None
    for prompt, settings, text in pairs:
        # The second argument of a log-likelihood is its continuation; a rolling log-likelihood has no second argument.
        if not isinstance(text, str) or not isinstance(settings, dict):
            raise HybridError(f"{where}: found {text!r:.60} as the response of a sample, not text; {_FIX_SAMPLES}")
        yield prompt, text


def _plain(row: dict[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    question = next((key for key in QUESTIONS if key in row), None)
    response = next((key for key in RESPONSES if key in row), None)
    if question is None or response is None:
        gold = (
            " (`answer` is not read as a response: it is usually the reference answer)"
            if response is None and "answer" in row
            else ""
        )
        raise HybridError(f"{where}: found {list(row)!r:.80}{gold}; a trace must have {_ACCEPTED}; rename its keys")
    if not isinstance(row[response], str):
        raise HybridError(f"{where}: `{response}` is {row[response]!r:.60}, not text; {_FIX_LINE}")
    yield row[question], row[response]


def _prompt(value: Any, where: str, notes: Counter[str]) -> str:
    contents = [value] if isinstance(value, str) else _contents(value)
    prompt = "\n\n".join(contents)
    if not prompt.strip():
        raise HybridError(
            f"{where}: the prompt is {value!r:.60}; it must be text or a chat's messages, not empty; {_FIX_LINE}"
        )
    if len(contents) > 1:
        notes["prompts are chats of several messages, read as one text each"] += 1
    return _unicode(prompt, where)


def _contents(chat: Any) -> list[str]:
    """The contents of a chat's messages, in order; empty if it is no chat.

    The harness writes a chat for an API as JSON in a list of one element.
    """
    if isinstance(chat, list) and len(chat) == 1 and isinstance(chat[0], str):
        try:
            chat = json.loads(chat[0])
        except (ValueError, RecursionError):
            return []
    messages = chat if isinstance(chat, list) else []
    contents = [message.get("content") if isinstance(message, dict) else None for message in messages]
    texts = [content for content in contents if isinstance(content, str)]
    return texts if len(texts) == len(contents) else []


def _unicode(text: str, where: str) -> str:
    """`text` itself. Raises HybridError for half of a surrogate pair, which JSON can contain and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HybridError(
            f"{where}: the text contains {text[error.start]!r}, half of a surrogate pair, which is not Unicode; "
            f"{_FIX_LINE}"
        ) from None
    return text
