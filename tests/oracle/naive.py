"""The naive hybrid decoding loop: slow, obvious, and the yardstick for the fast one.

One prompt at a time, the whole sequence recomputed at every step (no cache, no padding, no batch), and for
every candidate a trace of its own through nnsight. Nothing here comes from the package: draws, category,
tie-breaks, trimming and random directions are written a second time, from the method's definition alone, so
that an error has to be made twice to go unseen.

What the definition leaves open is settled here as follows:
- gate `never` does not run the thinking model (thinking_logprob and thinking_choice are None); gate `always`
  with emit `thinking` does not run the base model (base_choice is None, changed is False). Where one model
  never runs, the other is alone: no bridge, no excluded ids, and tokens, `decode` and `eos_id` in its own ids;
- where no candidate was made (gate shut, or emit `thinking`), category, behavior, coefficient and window are
  None;
- select `mlp` takes a category's head; with category `none` there is none, and the coefficient is 1;
- a token that straddles the beginning of the stop string is kept, and counted: part of it is answer;
- a stop string completed by the last allowed token ends as `stop`, not as `length`;
- log-probabilities of the thinking model are over all of its logits, also where not every id crosses.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nnsight import NNsight
from torch import Tensor

from tests.oracle.crossing import OneVocabulary, bridge_of
from tests.oracle.scoring import NaiveSampling, Step, log_probability, record_of, sampled


@dataclass(frozen=True)
class NaiveSteering:
    """Steering tensors, float32 on the CPU.

    Shapes: bias [d_base], vectors [latents, d_base]; of the SAE on the thinking model: mean and b_dec
    [d_thinking], W_e [latents, d_thinking], b_e [latents]; of the optional coefficient network with m hidden
    units: trunk_weight [m, d_base], trunk_bias [m], heads_weight [latents, m], heads_bias [latents].
    """

    layer: int
    bias: Tensor
    vectors: Tensor
    sae_layer: int
    mean: Tensor
    b_dec: Tensor
    W_e: Tensor
    b_e: Tensor
    keys: tuple[str, ...] = ()
    trunk_weight: Tensor | None = None
    trunk_bias: Tensor | None = None
    heads_weight: Tensor | None = None
    heads_bias: Tensor | None = None


@dataclass(frozen=True)
class NaivePolicy:
    """What to decide with; the fields have the names and meanings of the package's Policy."""

    gate: str = "disagreement"
    select: str = "guardrail"
    emit: str = "candidate"
    category: str = "sae"
    directions: str = "bundle"
    coefficients: tuple[float, ...] = (1.0,)
    windows: tuple[int, ...] = (0,)
    gate_rate: float | None = None
    seed: int = 0


def draw(seed: int, stream: str, position: int, prompt_ids: Sequence[int]) -> float:
    """A number in [0, 1) made of the seed, the stream's name, the token's index and the base prompt alone."""
    listed = ",".join(str(int(token)) for token in prompt_ids)
    key = hashlib.blake2b(listed.encode(), digest_size=16).digest()
    message = f"{seed}:{stream}:{position}".encode()
    return int.from_bytes(hashlib.blake2b(message, key=key, digest_size=8).digest(), "big") / 2**64


def category_of(steering: NaiveSteering, hidden: Tensor) -> int:
    """The SAE latent with the largest pre-activation for one thinking residual `hidden` [d_thinking]."""
    centred = hidden - steering.mean
    unit = centred / torch.sqrt((centred * centred).sum())
    scores = [float(row @ (unit - steering.b_dec) + b) for row, b in zip(steering.W_e, steering.b_e, strict=True)]
    return scores.index(max(scores))


def random_directions(steering: NaiveSteering, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian stand-ins for bias and vectors, each with the norm of what it replaces."""
    latents, width = steering.vectors.shape
    noise = torch.randn(latents + 1, width, generator=torch.Generator().manual_seed(seed))
    originals = [steering.bias, *steering.vectors]
    scaled = [row * (original.norm() / row.norm()) for row, original in zip(noise, originals, strict=True)]
    return scaled[0], torch.stack(scaled[1:])


def mlp_coefficient(steering: NaiveSteering, hidden: Tensor, category: int) -> float:
    """The coefficient that the small network gives to `category` for one base residual `hidden` [d_base]."""
    inner = steering.trunk_weight @ hidden + steering.trunk_bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    outer = steering.heads_weight[category] @ gelu + steering.heads_bias[category]
    return float(torch.log1p(torch.exp(outer)))


def preference(candidate: dict[str, Any]) -> tuple[float, float, float]:
    """Sort key of the guardrail: likeliest to the thinking model, smaller |a|, smaller window (0 = all)."""
    window = math.inf if candidate["window"] == 0 else candidate["window"]
    return (-candidate["logprob"], abs(candidate["coefficient"]), window)


def trim(tokens: Sequence[int], stop: Sequence[str], decode: Callable[[list[int]], str]) -> tuple[str, int] | None:
    """(text up to the earliest stop string, number of tokens that begin before it); None without one."""
    text = decode(list(tokens))
    found = [text.find(string) for string in stop if string in text]
    if not found:
        return None
    kept = 0
    while kept < len(tokens) and len(decode(list(tokens[:kept]))) < min(found):
        kept += 1
    return text[: min(found)], kept


def blocks_of(model: torch.nn.Module | NNsight) -> Sequence[Any]:
    """The list of transformer layers of a Llama-like (Gemma, Phi), GPT-NeoX, GPT-2 or OPT model."""
    for path in ("model.decoder.layers", "model.layers", "gpt_neox.layers", "transformer.h"):
        found = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise ValueError(f"no transformer layers found in {type(model).__name__}")


@torch.no_grad()
def read(model: torch.nn.Module, ids: Sequence[int], layer: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Unsteered next-token logits [vocab], and the residual [d] after `layer`, both at the last position."""
    row = torch.tensor([list(ids)])
    traced = NNsight(model)
    if layer is None:
        with traced.trace(input_ids=row, use_cache=False):
            logits = traced.output.logits.save()
        return logits[0, -1], None
    block = blocks_of(traced)[layer]
    with traced.trace(input_ids=row, use_cache=False):
        residual = block.output.save()
        logits = traced.output.logits.save()
    return logits[0, -1], residual[0, -1]


@torch.no_grad()
def read_steered(model: torch.nn.Module, ids: Sequence[int], layer: int, direction: Tensor, window: int) -> Tensor:
    """Next-token logits [vocab] with `direction` [d] added after `layer` on the last `window` positions."""
    row = torch.tensor([list(ids)])
    first = 0 if window == 0 else max(0, len(ids) - window)
    traced = NNsight(model)
    block = blocks_of(traced)[layer]
    with traced.trace(input_ids=row, use_cache=False):
        residual = block.output.clone()
        residual[:, first:, :] += direction
        block.output = residual
        logits = traced.output.logits.save()
    return logits[0, -1]


def argmax(logits: Tensor) -> int:
    """The smallest id among the largest logits."""
    return int((logits == logits.max()).nonzero()[0])


def naive_generate(
    base_model: torch.nn.Module | None,
    thinking_model: torch.nn.Module | None,
    tokenizer_pair: tuple[Any, Any] | None,
    steering: NaiveSteering | None,
    policy: NaivePolicy,
    base_ids: Sequence[int],
    thinking_ids: Sequence[int],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    decode: Callable[[list[int]], str] = str,
    eos_id: int | None = None,
    sampling: NaiveSampling | None = None,
) -> dict[str, Any]:
    """Decode one prompt, greedily without `sampling`; both models are in eval mode, float32, on the CPU.

    Returns tokens (list of kept ids, without EOS), records (a dict a kept token, with TokenRecord's fields),
    finish ("eos", "stop" or "length") and text (up to the stop string). Ids are the base's, those of `eos_id`
    and `decode` too, and the thinking model's where the base never runs. A model that the policy never reads
    may be None, as may the steering where no candidate is ever made.
    """
    bridge = bridge_of(tokenizer_pair if runs_base(policy) and runs_thinking(policy) else None)
    tokens: list[int] = []
    records: list[dict[str, Any]] = []
    for position in range(max_new_tokens):
        step = one_step(
            base_model, thinking_model, steering, policy, list(base_ids), list(thinking_ids), tokens, bridge
        )
        token = step.token
        if sampling is not None:
            token = sampled(step, sampling, draw(sampling.seed, sampling.stream, position, base_ids), bridge)
        if token == eos_id:
            return {"tokens": tokens, "records": records, "finish": "eos", "text": decode(list(tokens))}
        records.append(record_of(step, token, bridge) | {"position": position, "text": decode([token])})
        tokens.append(token)
        trimmed = trim(tokens, stop, decode)
        if trimmed is not None:
            text, kept = trimmed
            return {"tokens": tokens[:kept], "records": records[:kept], "finish": "stop", "text": text}
    return {"tokens": tokens, "records": records, "finish": "length", "text": decode(list(tokens))}


def naive_score(
    base_model: torch.nn.Module | None,
    thinking_model: torch.nn.Module | None,
    tokenizer_pair: tuple[Any, Any] | None,
    steering: NaiveSteering | None,
    policy: NaivePolicy,
    base_ids: Sequence[int],
    thinking_ids: Sequence[int],
    continuation: Sequence[int],
) -> tuple[float, bool]:
    """The log-likelihood (natural) of forced tokens, and whether greedy decoding would emit just these.

    `continuation` is in the ids that naive_generate would return: the base's, or the thinking model's where the
    base never runs. A token that has to cross and cannot raises ValueError.
    """
    bridge = bridge_of(tokenizer_pair if runs_base(policy) and runs_thinking(policy) else None)
    total, is_greedy = 0.0, True
    for position, token in enumerate(continuation):
        past = list(continuation[:position])
        step = one_step(base_model, thinking_model, steering, policy, list(base_ids), list(thinking_ids), past, bridge)
        total += log_probability(step.logits, bridge.first_thinking(token) if step.by_thinking else token)
        is_greedy = is_greedy and token == step.token
    return total, is_greedy


def runs_base(policy: NaivePolicy) -> bool:
    """Whether the policy ever reads the base model."""
    return not (policy.gate == "always" and policy.emit == "thinking")


def runs_thinking(policy: NaivePolicy) -> bool:
    """Whether the policy ever reads the thinking model."""
    return policy.gate != "never"


def one_step(
    base_model: torch.nn.Module | None,
    thinking_model: torch.nn.Module | None,
    steering: NaiveSteering | None,
    policy: NaivePolicy,
    base_prompt: list[int],
    thinking_prompt: list[int],
    tokens: list[int],
    bridge: OneVocabulary,
) -> Step:
    """What is decided at the position that follows `tokens`."""
    base_choice = thinking_choice = logprobs = base_hidden = thinking_hidden = None
    if runs_base(policy):
        base_logits, base_hidden = read(base_model, base_prompt + tokens, steering.layer if steering else None)
        base_choice = argmax(bridge.crossing_base(base_logits))
    if runs_thinking(policy):
        thinking_text = thinking_prompt + bridge.text_to_thinking(tokens)
        thinking_logits, thinking_hidden = read(thinking_model, thinking_text, steering.sae_layer if steering else None)
        thinking_choice = argmax(bridge.crossing_thinking(thinking_logits))
        logprobs = torch.log_softmax(thinking_logits, dim=-1)

    def chance(stream: str) -> float:
        return draw(policy.seed, stream, len(tokens), base_prompt)

    if policy.gate == "never":
        opened = False
    elif policy.gate == "always":
        opened = True
    elif policy.gate == "disagreement":
        opened = not bridge.agree(base_choice, thinking_choice)
    elif policy.gate == "random":
        opened = chance("gate") < policy.gate_rate
    else:
        raise ValueError(f"unknown gate {policy.gate}")

    category = chosen = None
    by_thinking = opened and policy.emit == "thinking"
    if not opened:
        token, logits = base_choice, base_logits
    elif by_thinking:
        token, logits = bridge.first_base(thinking_choice), thinking_logits
    else:
        if policy.category == "sae":
            category = category_of(steering, thinking_hidden)
        elif policy.category == "random":
            category = int(chance("category") * len(steering.vectors))
        candidates = candidates_of(base_model, steering, policy, base_prompt + tokens, base_hidden, category)
        for candidate in candidates:
            candidate["token"] = argmax(bridge.crossing_base(candidate["logits"]))
            candidate["logprob"] = float(logprobs[bridge.first_thinking(candidate["token"])])
        if policy.select == "guardrail":
            chosen = min(candidates, key=preference)  # min keeps the first of equals: the listed order
        elif policy.select == "random":
            chosen = candidates[int(chance("select") * len(candidates))]
        else:
            (chosen,) = candidates
        token, logits = chosen["token"], chosen["logits"]

    named = steering is not None and category is not None and category < len(steering.keys)
    fields = {
        "steered": opened,
        "category": category,
        "behavior": None if category is None else steering.keys[category] if named else f"latent-{category}",
        "coefficient": chosen["coefficient"] if chosen else None,
        "window": chosen["window"] if chosen else None,
        "base_choice": base_choice,
        "base_logprob": None if base_choice is None else float(torch.log_softmax(base_logits, dim=-1)[base_choice]),
        "thinking_choice": None if thinking_choice is None else bridge.first_base(thinking_choice),
        "thinking_choice_logprob": None if thinking_choice is None else float(logprobs[thinking_choice]),
    }
    return Step(token, logits, by_thinking, logprobs, fields)


def candidates_of(
    base_model: torch.nn.Module,
    steering: NaiveSteering,
    policy: NaivePolicy,
    ids: list[int],
    base_hidden: Tensor,
    category: int | None,
) -> list[dict[str, Any]]:
    """One dict (coefficient, window, logits) a candidate, coefficients first, each by its own forward pass."""
    bias, vectors = steering.bias, steering.vectors
    if policy.directions == "random":
        bias, vectors = random_directions(steering, policy.seed)
    direction = bias if category is None else bias + vectors[category]
    coefficients = policy.coefficients
    if policy.select == "mlp":
        coefficients = (1.0,) if category is None else (mlp_coefficient(steering, base_hidden, category),)
    candidates = []
    for coefficient in coefficients:
        for window in policy.windows:
            logits = read_steered(base_model, ids, steering.layer, coefficient * direction, window)
            candidates.append({"coefficient": coefficient, "window": window, "logits": logits})
    return candidates
