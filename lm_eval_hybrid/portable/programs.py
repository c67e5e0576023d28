"""What a server is asked to run: one function call inside one session, so that a round costs one request a model.

Sent as source text by nnsight, with every function it calls (`model.SHIPPED`): client and server need not have one
Python, and the server need not have this package. That holds for plain functions only; dataclasses, `super()` and
closures travel as bytecode, or not at all, so here is none. Nothing lasts between requests: a row is read from its
first token each time, its keys and values live as long as the request.

Rows are padded on the left: whatever their lengths, all end in the same column, and take every further step together.
A row's position is its column less its padding.
"""

from __future__ import annotations

import math
import time
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.portable.passes import (
    causal_mask,
    opened,
    pass_arguments,
    reach_of,
    read_rows,
    sendable,
    steered_logits,
)


def describe(model: Any, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the server's model is: some entries of its configuration, and a digest of a sample of its weights."""
    module = model._module
    config = module.config.get_text_config()
    digest = sha256()
    for name, weight in module.named_parameters():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)][:64]
        digest.update(f"{name} {tuple(weight.shape)} {sample.float().cpu().tolist()}".encode())
    return {
        "config": {name: getattr(config, name, None) for name in given["names"]},
        "weights": digest.hexdigest()[:12],
        "dtype": str(module.dtype).removeprefix("torch."),
    }


def draft(model: Any, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Take a candidate where the gate opened, then say what the unsteered model says next, token after token.

    Args:
        model: nnsight's; path: of its layers.
        given:
            ids: of every row the tokens read before `pending`.
            pending: of every row the next token; -1: what `steering` leads to.
            room: tokens that each row may still have; end: the id that ends one, or -1.
            opens: of every row, for each step, whether the gate opens there: 1, 0, or -1 where both models decide.
            longest: steps at most; edges, chances, ratio: see `decoding.pace.Pace`.
            width, blocked: tokens that may be chosen: below `width` (None: all), but for these.
            layer: hook layer; residual: whether its output is wanted.
            sampling: of every row None, or (temperature, top_k, top_p, a level for each step); drawn: the function
                `decoding.sampling.drawn`, which is sent along.
            steering: None, or: rows [m]; direction [m, d]; coefficients [m, C]; windows [C]; preferred [C], the order
                that ties are decided in; judges: of each place (token ids, their log-probabilities, the lowest of
                these), or taken: of each place the candidate; sampling: of each place as above, with one level; own:
                of each place a token to be scored, where that is wanted.

    Returns:
        tokens, choice, margin, logprob, spoken: [rows, k]; residual [rows, k, d] where wanted; candidates [m, C], and
        taken [m], -1 where the judge does not know; resolved [m] tokens, -1 there; said [m, C], their logits; own
        [m, C] where wanted, log-probabilities of those tokens; places: the rows; step: seconds of one.
    """
    with torch.no_grad():
        inner, layers, device = opened(model, path)
        steering = given["steering"]
        reach = 1 if steering is None else reach_of(steering["windows"])
        past = read_rows(inner, layers, given, given["ids"], reach, 1)
        found: dict[str, Any] = {}
        pending = torch.tensor(given["pending"], device=device)
        if steering is not None:
            logits = steered_logits(inner, layers, given, past, steering)
            found = {"places": steering["rows"], **_taken(given, steering, logits)}
            rows = torch.tensor(steering["rows"], device=device)
            pending[rows] = found["resolved"].clamp(min=0)
        return sendable(found | _steps(inner, layers, given, past, pending))


def read(model: Any, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Read rows at once, and say what the model says at some places, and more of it where the gate opens.

    Args:
        model, path: see `draft`.
        given:
            ids: the rows; wanted: of each the positions (index of a token in it) after which something is asked.
            spoken: as `wanted`, the token whose probability is asked, or -1.
            accepted: as `wanted`, the tokens that agree with the other model's choice.
            opens: as `wanted`, 1, 0 or -1: see `draft`.
            every: whether every opening counts, or a row's first.
            top: likeliest tokens told of each opening; chosen: of those that may be chosen alone, which then have all
                the probability; residual: whether the hook layer's output is told, there.
            layer, width, blocked: see `draft`.
            sampling: of every row None, or (temperature, top_k, top_p, a level for each wanted place); drawn: see
                `draft`.

    Returns:
        choice, logprob, spoken_logprob: [rows, steps], of which a row's first ones mean something. Of the openings:
        rows, steps [n]; top_tokens, top_logprobs [n, top]; residual [n, d] where wanted; drawn [n] where sampled.
    """
    with torch.no_grad():
        inner, layers, device = opened(model, path)
        wanted = given["wanted"]
        back = max(
            len(ids) - min(places, default=len(ids) - 1) for ids, places in zip(given["ids"], wanted, strict=True)
        )
        past = read_rows(inner, layers, given, given["ids"], back if given["residual"] else 1, back)
        steps = max(len(places) for places in wanted)
        columns = torch.zeros(len(wanted), steps, dtype=torch.int64, device=device)
        spoken = torch.full((len(wanted), steps), -1, device=device)
        for i, places in enumerate(wanted):
            for j, place in enumerate(places):
                columns[i, j] = back - (len(given["ids"][i]) - place)
                spoken[i, j] = given["spoken"][i][j]
        each = torch.arange(len(wanted), device=device)[:, None]
        logits = past["logits"][each, columns]
        total = torch.stack([row.float().logsumexp(-1) for row in logits])
        choice = _allowed(logits, given).argmax(-1)
        found = {
            "choice": choice,
            "logprob": logits.gather(-1, choice[..., None])[..., 0].float() - total,
            "spoken_logprob": logits.gather(-1, spoken.clamp(min=0)[..., None])[..., 0].float() - total,
        }
        places = _openings(given, choice.tolist())
        rows = torch.tensor([row for row, _ in places], dtype=torch.int64, device=device)
        at = torch.tensor([step for _, step in places], dtype=torch.int64, device=device)
        if given["chosen"]:
            said = _allowed(logits[rows, at], given).float().log_softmax(-1)
        else:
            said = logits[rows, at].float() - total[rows, at][:, None]
        top = said.topk(min(given["top"], said.shape[-1]), dim=-1)
        found.update(rows=rows, steps=at, top_tokens=top.indices, top_logprobs=top.values)
        if given["residual"]:
            found["residual"] = past["residual"][rows, columns[rows, at]].float()
        if any(given["sampling"]):
            tokens = []
            for (row, step), line in zip(places, _allowed(logits[rows, at], given), strict=True):
                sampling = given["sampling"][row]
                tokens.append(-1 if sampling is None else given["drawn"](line, *sampling[:3], sampling[3][step]))
            found["drawn"] = torch.tensor(tokens, dtype=torch.int64)
        return sendable(found)


def sentences(model: Any, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """The residual stream of some rows at some sentences, after several layers.

    Args:
        model, path: see `draft`.
        given: ids: the rows; layers; spans: of each row (begin, end) of its sentences, indices in it, begin above 0.

    Returns:
        onset, mean: [layers, sentences, d] float32, the residual just before a sentence, and its mean over one; the
        rows' sentences one after the other.
    """
    with torch.no_grad():
        inner, layers, device = opened(model, path)
        ids = given["ids"]
        width = max(len(row) for row in ids)
        pads = torch.tensor([width - len(row) for row in ids], device=device)
        tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids], device=device)
        columns = torch.arange(width, device=device)
        arguments = {
            "input_ids": tokens,
            "attention_mask": causal_mask(inner, columns.expand(len(ids), -1), pads, width),
            "position_ids": (columns - pads[:, None]).clamp(min=0),
            "use_cache": False,
            "logits_to_keep": 1,
        }
        wanted = {index: layers[index] for index in sorted(given["layers"])}
        read = {}
        with inner.trace(**arguments):
            for index, layer in wanted.items():
                read[index] = layer.output.save()
        spans = [
            (row, width - len(ids[row]) + begin, width - len(ids[row]) + end)
            for row, some in enumerate(given["spans"])
            for begin, end in some
        ]
        found = {"onset": [], "mean": []}
        for index in given["layers"]:
            rows = read[index].float()
            nothing = [rows[0, :0]]  # of no sentence
            found["onset"].append(torch.cat(nothing + [rows[row, begin - 1 : begin] for row, begin, _ in spans]))
            means = [rows[row, begin:end].mean(0, keepdim=True) for row, begin, end in spans]
            found["mean"].append(torch.cat(nothing + means))
        return sendable({name: torch.stack(parts) for name, parts in found.items()})


def _taken(given: dict[str, Any], steering: dict[str, Any], logits: Tensor) -> dict[str, Any]:
    """Which candidate is taken at each place, of logits [m, C, vocab], and what it says."""
    allowed = _allowed(logits, given)
    tokens = allowed.argmax(-1)
    said = logits.gather(-1, tokens[..., None])[..., 0]
    if steering.get("taken") is not None:
        taken = torch.tensor(steering["taken"], device=tokens.device)
    else:
        preferred = steering["preferred"]
        known = [
            _likeliest(row, preferred, *judge) for row, judge in zip(tokens.tolist(), steering["judges"], strict=True)
        ]
        taken = torch.tensor(known, device=tokens.device)
    each = torch.arange(len(tokens), device=tokens.device)
    resolved = torch.where(taken < 0, -1, tokens[each, taken.clamp(min=0)])
    for i, sampling in enumerate(steering["sampling"]):
        if sampling is not None and taken[i] >= 0:
            resolved[i] = given["drawn"](allowed[i, taken[i]], *sampling)
    found = {"candidates": tokens, "taken": taken, "resolved": resolved, "said": said.float()}
    if steering.get("own") is not None:
        found["own"] = torch.stack(
            [
                line[:, token].float() - line.float().logsumexp(-1)
                for line, token in zip(logits, steering["own"], strict=True)
            ]
        )
    return found


def _likeliest(tokens: list[int], preferred: list[int], known: list[int], logprobs: list[float], floor: float) -> int:
    """Index of the candidate whose token is likeliest; -1 where that may be one that is not known."""
    judged = dict(zip(known, logprobs, strict=True))
    values = [judged.get(tokens[c], -math.inf) for c in preferred]
    best = max(values)
    missing = any(tokens[c] not in judged for c in preferred)
    return -1 if missing and best <= floor else preferred[values.index(best)]


def _steps(
    inner: Any, layers: list[Any], given: dict[str, Any], past: dict[str, Any], pending: Tensor
) -> dict[str, Any]:
    """What the unsteered model says after `pending` [rows], one token after the other."""
    layer, rows = layers[given["layer"]], len(pending)
    columns = torch.full((rows, 1), past["width"], device=pending.device)
    standing = torch.ones(rows)
    tokens, choices, margins, logprobs, spoken, kept = [], [], [], [], [], []
    begun = time.perf_counter()
    for step in range(given["longest"]):
        arguments = pass_arguments(inner, past, pending[:, None], columns + step, 1)
        with inner.trace(**arguments):
            residual = layer.output.save()
            said = inner.output.logits.save()
        said = said[:, -1]
        allowed = _allowed(said, given)
        best = allowed.topk(min(2, allowed.shape[-1]), dim=-1).values.float()
        total = torch.stack([row.float().logsumexp(-1) for row in said])
        choice = allowed.argmax(-1)  # not topk's index: of equals the first is meant
        pending = choice.clone()
        for i, sampling in enumerate(given["sampling"]):
            if sampling is not None:
                pending[i] = given["drawn"](allowed[i], *sampling[:3], sampling[3][step])
        choices.append(choice)
        tokens.append(pending)
        margins.append(best[:, 0] - best[:, -1])
        logprobs.append(best[:, 0] - total)
        spoken.append(said.gather(1, pending[:, None])[:, 0].float() - total)
        if given["residual"]:
            kept.append(residual[:, -1].float())
        standing = standing * _stands(given, margins[-1].cpu(), pending.tolist(), step)
        if float(standing.mean()) <= given["ratio"]:
            break
    found = {"tokens": tokens, "choice": choices, "margin": margins, "logprob": logprobs, "spoken": spoken}
    if given["residual"]:
        found["residual"] = kept
    found = {name: torch.stack(values, 1) if values else torch.zeros(rows, 0) for name, values in found.items()}
    found["step"] = (time.perf_counter() - begun) / max(1, len(tokens))
    return found


def _stands(given: dict[str, Any], margins: Tensor, tokens: list[int], step: int) -> Tensor:
    """[rows]: the chance that the last drafted token stands, and another may follow."""
    chances = given["chances"][torch.bucketize(margins, given["edges"])].clone()
    for i, token in enumerate(tokens):
        opens = given["opens"][i][step]
        if opens == 1 or token == given["end"] or step + 1 >= given["room"][i]:
            chances[i] = 0.0
        elif opens == 0:
            chances[i] = 1.0
    return chances


def _allowed(logits: Tensor, given: dict[str, Any]) -> Tensor:
    """Logits without the tokens that may not be chosen: those are -inf, or cut off."""
    if given["width"] is not None:
        logits = logits[..., : given["width"]]
    if given["blocked"]:
        logits = logits.index_fill(-1, torch.tensor(given["blocked"], device=logits.device), -math.inf)
    return logits


def _openings(given: dict[str, Any], choice: list[list[int]]) -> list[tuple[int, int]]:
    """(row, step) wherever the gate opens, or where it first does in each row."""
    found = []
    for row, (opens, accepted) in enumerate(zip(given["opens"], given["accepted"], strict=True)):
        for step, known in enumerate(opens):
            if known == 1 or (known < 0 and choice[row][step] not in accepted[step]):
                found.append((row, step))
                if not given["every"]:
                    break
    return found
