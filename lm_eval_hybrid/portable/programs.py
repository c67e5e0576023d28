"""What a server runs for decoding and discovery: one function call in one session, so one request a model and round.

A row is read from its first token in every request; its KV cache lives as long as the request.
"""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.portable.attention_masks import branch_mask, mask_form, pad_rows
from lm_eval_hybrid.portable.passes import (
    copy_cache,
    open_model,
    pass_arguments,
    read_rows,
    sendable,
    steered_logits,
    upper_logits,
)
from lm_eval_hybrid.portable.sampling import allowed_logits, drawn, likeliest
from lm_eval_hybrid.portable.steering import divergence, steering


def describe(model: Any, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """The server's model: the entries `names` of its configuration, its dtype, and a digest of a sample of its weights.

    Args:
        model: nnsight's; path: to its layers.
    """
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
    """Select a candidate in each row where the gate opened, then draft greedily with the unsteered model.

    Args:
        model, path: see `describe`.
        given:
            ids: the rows: their tokens before `pending`.
            pending: of every row the next token; -1: the token of the candidate that is selected.
            room: tokens that each row may still get; end: the id that ends one, or -1.
            opens: of every row, for each step, whether the gate opens: 1, 0, or -1 where that takes both models.
            longest: most steps; edges, chances, ratio: of `decoding.draft_length`, which ends a draft early.
            width, blocked: ids that may be chosen: below `width` (None: all), except these.
            layer: hook layer; residual: whether to return its output.
            sampling: of every row None, or (temperature, top_k, top_p, a level for each step).
            steering: None, or: rows [m]; direction [m, d]; coefficients [m, C]; windows [C]; preferred [C], the order
                in which ties are decided; either judges: of each place (ids, their log-probabilities, the lowest of
                these), or taken: of each place the candidate; sampling: of each place as above, with one level; own:
                None, or of each place a token to score under every candidate.

    Returns:
        Of k drafted steps: tokens, choice (the argmax), margin, logprob (of choice), spoken (log-probability of
        tokens): [rows, k]; residual [rows, k, d] if requested; step: seconds a step took.
        Of m places: candidates [m, C] tokens; said [m, C], their logits; taken [m], -1 where `judges` do not decide it;
        resolved [m] tokens, -1 there; own [m, C] log-probabilities if requested; places, the rows.
    """
    with torch.no_grad():
        inner, layers, device = open_model(model, path)
        steering = given["steering"]
        reach = 1 if steering is None else 0 if 0 in steering["windows"] else max(steering["windows"])
        past = read_rows(inner, layers, given, given["ids"], reach, 1)
        results: dict[str, Any] = {}
        pending = torch.tensor(given["pending"], device=device)
        if steering is not None:
            logits = steered_logits(inner, layers, given, past, steering)
            results = {"places": steering["rows"], **_select(given, steering, logits)}
            rows = torch.tensor(steering["rows"], device=device)
            pending[rows] = results["resolved"].clamp(min=0)
        return sendable(results | _draft(inner, layers, given, past, pending))


def read(model: Any, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Read whole rows: the model's choices at some places, and more where the gate opens.

    Args:
        model, path: see `describe`.
        given:
            ids: the rows; wanted: of each its places: indices of tokens after which the model's choice is returned.
            spoken: of each place the token whose log-probability is returned, or -1.
            accepted: of each place the tokens that agree with the other model's choice.
            opens: of each place 1, 0 or -1: see `draft`.
            every: whether all openings of a row are returned, or the first.
            top: number of likeliest tokens to return of each opening; chosen: whether their probabilities are among the
                ids that may be chosen only; residual: whether to return the hook layer's output there.
            layer, width, blocked: see `draft`.
            sampling: of every row None, or (temperature, top_k, top_p, a level for each place).

    Returns:
        choice, logprob, spoken_logprob: [rows, places], padded. Of n openings: rows, steps [n], the step being an
        index of a row's places; top_tokens, top_logprobs [n, top]; residual [n, d] if requested; drawn [n] if sampled.
    """
    with torch.no_grad():
        inner, layers, device = open_model(model, path)
        ids, wanted = given["ids"], given["wanted"]
        back = max(len(row) - min(places, default=len(row) - 1) for row, places in zip(ids, wanted, strict=True))
        past = read_rows(inner, layers, given, ids, back if given["residual"] else 1, back)
        # Columns of what was kept: the last `back` of every row.
        columns = pad_rows(
            [[back - len(row) + place for place in places] for row, places in zip(ids, wanted, strict=True)], device
        )
        spoken = pad_rows(given["spoken"], device, fill=-1)
        logits = past["logits"][torch.arange(len(ids), device=device)[:, None], columns]
        total = torch.stack([row.float().logsumexp(-1) for row in logits])
        choice = _allowed(logits, given).argmax(-1)
        results = {
            "choice": choice,
            "logprob": logits.gather(-1, choice[..., None])[..., 0].float() - total,
            "spoken_logprob": logits.gather(-1, spoken.clamp(min=0)[..., None])[..., 0].float() - total,
        }
        openings = _openings(given, choice.tolist())
        rows = torch.tensor([row for row, _ in openings], dtype=torch.int64, device=device)
        steps = torch.tensor([step for _, step in openings], dtype=torch.int64, device=device)
        opened = logits[rows, steps]
        if given["chosen"]:
            logprobs = _allowed(opened, given).float().log_softmax(-1)
        else:
            logprobs = opened.float() - total[rows, steps][:, None]
        top = logprobs.topk(min(given["top"], logprobs.shape[-1]), dim=-1)
        results.update(rows=rows, steps=steps, top_tokens=top.indices, top_logprobs=top.values)
        if given["residual"]:
            results["residual"] = past["residual"][rows, columns[rows, steps]].float()
        if any(given["sampling"]):
            tokens = []
            for (row, step), line in zip(openings, _allowed(opened, given), strict=True):
                sampling = given["sampling"][row]
                tokens.append(-1 if sampling is None else _sampled(line, sampling, step))
            results["drawn"] = torch.tensor(tokens, dtype=torch.int64)
        return sendable(results)


def sentences(model: Any, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """The residual stream at the sentences of some rows, after several layers.

    Args:
        model, path: see `describe`.
        given: ids: the rows; layers: indices; spans: of each row (begin, end) of its sentences, begin above 0.

    Returns:
        onset, mean: [layers, sentences, d] float32, the residual just before a sentence, and its mean over the
        sentence; row after row.
    """
    with torch.no_grad():
        inner, layers, device = open_model(model, path)
        ids = given["ids"]
        width = max(len(row) for row in ids)
        pads = torch.tensor([width - len(row) for row in ids], device=device)
        arguments = pass_arguments(inner, pad_rows(ids, device, left=True), pads, 0, 1, None)
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
        onsets, means = [], []
        for index in given["layers"]:
            rows = read[index].float()
            none = [rows[0, :0]]  # so that there is something to concatenate where there is no sentence
            onsets.append(torch.cat(none + [rows[row, begin - 1 : begin] for row, begin, _ in spans]))
            means.append(torch.cat(none + [rows[row, begin:end].mean(0, keepdim=True) for row, begin, end in spans]))
        return sendable({"onset": torch.stack(onsets), "mean": torch.stack(means)})


def _select(given: dict[str, Any], steering: dict[str, Any], logits: Tensor) -> dict[str, Any]:
    """The candidate selected at each place, of logits [m, C, vocab], and the tokens of all."""
    allowed = _allowed(logits, given)
    tokens = allowed.argmax(-1)
    taken = steering.get("taken")
    if taken is None:
        places = zip(tokens.tolist(), steering["judges"], strict=True)
        taken = [likeliest(row, steering["preferred"], *judge) for row, judge in places]
    taken = torch.tensor(taken, device=tokens.device)
    each = torch.arange(len(tokens), device=tokens.device)
    resolved = torch.where(taken < 0, -1, tokens[each, taken.clamp(min=0)])
    for i, sampling in enumerate(steering["sampling"]):
        if sampling is not None and taken[i] >= 0:
            resolved[i] = drawn(allowed[i, taken[i]], *sampling)
    results = {
        "candidates": tokens,
        "taken": taken,
        "resolved": resolved,
        "said": logits.gather(-1, tokens[..., None])[..., 0].float(),
    }
    if steering.get("own") is not None:
        own = zip(logits, steering["own"], strict=True)
        results["own"] = torch.stack([row[:, token].float() - row.float().logsumexp(-1) for row, token in own])
    return results


def _draft(
    inner: Any, layers: list[Any], given: dict[str, Any], past: dict[str, Any], pending: Tensor
) -> dict[str, Any]:
    """What the unsteered model says after `pending` [rows], token by token; see `draft`."""
    layer, rows = layers[given["layer"]], len(pending)
    standing = torch.ones(rows)  # the chance that all tokens of a row's draft so far are accepted
    steps: dict[str, list[Tensor]] = {name: [] for name in ("tokens", "choice", "margin", "logprob", "spoken")}
    if given["residual"]:
        steps["residual"] = []
    begun = time.perf_counter()
    for step in range(given["longest"]):
        arguments = pass_arguments(inner, pending[:, None], past["pads"], past["width"] + step, 1, past["cache"])
        with inner.trace(**arguments):
            residual = layer.output.save()
            logits = inner.output.logits.save()
        logits = logits[:, -1]
        allowed = _allowed(logits, given)
        best = allowed.topk(min(2, allowed.shape[-1]), dim=-1).values.float()
        total = torch.stack([row.float().logsumexp(-1) for row in logits])
        choice = allowed.argmax(-1)  # not an index of topk, which does not take the first of equals
        pending = choice.clone()
        for i, sampling in enumerate(given["sampling"]):
            if sampling is not None:
                pending[i] = _sampled(allowed[i], sampling, step)
        steps["choice"].append(choice)
        steps["tokens"].append(pending)
        steps["margin"].append(best[:, 0] - best[:, -1])
        steps["logprob"].append(best[:, 0] - total)
        steps["spoken"].append(logits.gather(1, pending[:, None])[:, 0].float() - total)
        if given["residual"]:
            steps["residual"].append(residual[:, -1].float())
        standing = standing * _acceptance(given, steps["margin"][-1].cpu(), pending.tolist(), step)
        if float(standing.mean()) <= given["ratio"]:
            break
    count = len(steps["tokens"])
    seconds = (time.perf_counter() - begun) / max(1, count)
    stacked = {name: torch.stack(parts, 1) if parts else torch.zeros(rows, 0) for name, parts in steps.items()}
    return {**stacked, "step": seconds}


def _acceptance(given: dict[str, Any], margins: Tensor, tokens: list[int], step: int) -> Tensor:
    """[rows]: the chance that a row's last drafted token is accepted and another may follow it."""
    chances = given["chances"][torch.bucketize(margins, given["edges"])].clone()
    for i, token in enumerate(tokens):
        opens = given["opens"][i][step]
        if opens == 1 or token == given["end"] or step + 1 >= given["room"][i]:
            chances[i] = 0.0
        elif opens == 0:
            chances[i] = 1.0
    return chances


def _sampled(logits: Tensor, sampling: tuple[float, int, float, list[float]], step: int) -> int:
    temperature, top_k, top_p, levels = sampling
    return drawn(logits, temperature, top_k, top_p, levels[step])


def _allowed(logits: Tensor, given: dict[str, Any]) -> Tensor:
    return allowed_logits(logits, given["width"], given["blocked"])


def _openings(given: dict[str, Any], choice: list[list[int]]) -> list[tuple[int, int]]:
    """(row, step) wherever the gate opens, or where it first does in each row."""
    openings = []
    for row, (opens, accepted) in enumerate(zip(given["opens"], given["accepted"], strict=True)):
        for step, known in enumerate(opens):
            if known == 1 or (known < 0 and choice[row][step] not in accepted[step]):
                openings.append((row, step))
                if not given["every"]:
                    break
    return openings


def fit(model: Any, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Read segments, each as a branch of its row, once for each of several sets of vectors.

    Args:
        model, path: see `programs.describe`.
        given:
            ids: the rows; layer: the layer whose output is steered.
            columns, branch, forks, category: [m, T], of the segments' tokens, as laid out by discovery's segments.
            tokens, logprobs: [t, K], the target at each real token; see `steering.divergence`.
            ways: sets of tensors by name: bias, perhaps vectors, perhaps all of a coefficient network.
            gradient: names of the tensors of the first set whose gradients are returned.

    Returns:
        norm: [t] float32, of the unsteered residual. loss [ways, t] float32, in nats, and choice [ways, t], the
        likeliest token. By name, the gradients of the sum of the first set's losses.
    """
    inner, layers, device = open_model(model, path)
    columns = given["columns"].to(device)
    real = columns >= 0
    with torch.no_grad():
        past = read_rows(inner, layers, given, given["ids"], 0, 1)
        rows = torch.arange(len(columns), device=device)[:, None]
        residual = past["residual"][rows, (columns + past["pads"][:, None]).clamp(min=0)]
    results: dict[str, Any] = {"norm": residual[real].float().norm(dim=-1)}
    losses, choices = [], []
    for index, way in enumerate(given["ways"]):
        learned = given["gradient"] if index == 0 else []
        tensors = {name: tensor.to(device).requires_grad_(name in learned) for name, tensor in way.items()}
        with torch.set_grad_enabled(bool(learned)):
            logits = _branches(inner, layers, given, past, residual, _added(given, residual, tensors))[real].float()
            loss = divergence(logits, given["tokens"].to(device), given["logprobs"].to(device))
        if learned:
            gradients = torch.autograd.grad(loss.sum(), [tensors[name] for name in learned])
            results.update(zip(learned, gradients, strict=True))
        losses.append(loss.detach())
        choices.append(logits.detach().argmax(-1))
    if losses:
        results.update(loss=torch.stack(losses), choice=torch.stack(choices))
    return sendable(results)


def _added(given: dict[str, Any], residual: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """[m, T, d]."""
    network = None
    if "trunk_weight" in tensors:
        network = tensors["trunk_weight"], tensors["trunk_bias"], tensors["heads_weight"], tensors["heads_bias"]
    category = given["category"].to(residual.device)
    return steering(residual, category, tensors["bias"], tensors.get("vectors"), network)


def _branches(
    inner: Any, layers: list[Any], given: dict[str, Any], past: dict[str, Any], residual: Tensor, added: Tensor
) -> Tensor:
    """Logits [m, T, vocab]."""
    device, width = residual.device, past["width"]
    columns, branch, forks = (given[name].to(device) for name in ("columns", "branch", "forks"))
    keys = torch.arange(width, device=device) - past["pads"][:, None]
    mask = branch_mask(columns, branch, forks, keys, mask_form(inner._module))
    steered = residual + added.to(residual.dtype)
    cache = copy_cache(past["cache"], torch.arange(len(columns), device=device), width)
    return upper_logits(inner, layers, given, steered, mask, columns.clamp(min=0), 0, cache)
