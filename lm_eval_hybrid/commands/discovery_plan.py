"""What a discovery run would do, and what that takes: a table, made from configurations alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, PretrainedConfig

from lm_eval_hybrid.discovery.taxonomy import grading
from lm_eval_hybrid.discovery.vectors.fitting import LikelihoodRecipe

if TYPE_CHECKING:
    from lm_eval_hybrid.discovery.plan import Plan

CHARACTERS = 3.5  # of English and formulas in a token
PROMPT = 120  # tokens
SENTENCE = 22  # tokens
GATES = 0.12  # share of places at which the models differ, as in the paper's example
GATE = 150  # bytes that are kept of one
SPEEDS = ((1e11, "two cores"), (2e14, "an H100 in bfloat16, half used"))  # FLOP a second


@dataclass(frozen=True)
class Model:
    """A model's sizes, from its configuration."""

    parameters: int
    layers: int
    width: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Model":
        from accelerate import init_empty_weights

        text = config.get_text_config()
        with init_empty_weights():
            parameters = AutoModelForCausalLM.from_config(config).num_parameters()
        return cls(parameters, text.num_hidden_layers, text.hidden_size)

    def reading(self, tokens: float, layers: int | None = None) -> float:
        """FLOP of a forward pass: two a parameter and token (Kaplan et al. 2020), of the first `layers` only."""
        return 2 * self.parameters * tokens * (1 if layers is None else layers / self.layers)


@dataclass(frozen=True)
class Cost:
    """Of one stage: what is done, how much is computed, and what stays on the disk."""

    work: str
    flop: float = 0.0
    disk: float = 0.0  # bytes


def render(plan: "Plan", models: Mapping[str, Model]) -> RenderableType:
    """The table of stages, with what is there already, and what all of the rest takes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, justify in (
        ("stage", "left"),
        ("state", "left"),
        ("work", "left"),
        ("TFLOP", "right"),
        ("disk", "right"),
    ):
        table.add_column(name, justify=justify)
    left = room = 0.0
    of = costs(plan, models)
    for stage in plan.stages:
        cost = of[stage.name]
        state = "there" if stage.done else "begun" if stage.begun else "to do"
        table.add_row(stage.name, state, cost.work, f"{cost.flop / 1e12:,.3g}", _bytes(cost.disk))
        if not stage.done:
            left, room = left + cost.flop, room + cost.disk
    weights = sum(model.parameters for model in models.values())
    times = "; ".join(f"{_time(left / speed)} at {speed / 1e12:g} TFLOP/s ({what})" for speed, what in SPEEDS)
    lines = [
        f"left to do: {left / 1e12:,.3g} TFLOP, {_bytes(room)} on the disk, in {plan.workshop.folder}",
        f"about {times}; decoding is slower than its FLOP say where few answers go on at once",
        f"models: {weights:,} parameters, {_bytes(4 * weights)} in float32, {_bytes(2 * weights)} in bfloat16",
    ]
    judge = plan.recipe.judge
    if judge is not None:
        lines.append(f"judge {judge.model}: {grading.estimate(max(plan.recipe.sae.sizes), judge)}")
    return Group(table, *(Text(line) for line in lines))


def costs(plan: "Plan", models: Mapping[str, Model]) -> dict[str, Cost]:
    """Of each stage that a run makes, by name: bounds where lengths are not known, else estimates."""
    recipe, base, thinking = plan.recipe, models["base"], models["thinking"]
    count, tokens = _traces(plan)
    sentences, read = tokens / SENTENCE, tokens + count * PROMPT
    sae, vectors, calibration = recipe.sae, recipe.vectors, recipe.calibration
    found = {
        "traces": Cost(f"{count:,} traces, at most {tokens:,.0f} tokens", thinking.reading(tokens), tokens * CHARACTERS)
    }
    of = f"{count:,} traces, about {sentences:,.0f} sentences" if plan.samples else f"about {sentences:,.0f} sentences"
    found["activations"] = Cost(
        f"layers: {_list(sae.layers)}; {of}",
        thinking.reading(tokens, max(sae.layers) + 1),
        sentences * thinking.width * 4 * 2 * len(sae.layers),
    )
    weights = sum(sae.sizes) * thinking.width
    # Encoder and decoder, forward and backward: 12 a weight and row.
    training = 12.0 * weights * sae.seeds * sae.steps * min(sae.batch, sentences)
    sizes = f"sizes: {_list(sae.sizes)}; starts: {sae.seeds}"
    found |= {stage.name: Cost(sizes, training, 8 * weights) for stage in plan.saes}
    found["taxonomy"] = Cost("titles and grades by a judge")
    both = base.reading(read) + thinking.reading(read)
    found["gates"] = Cost("both models over all traces", both, GATES * tokens * GATE)
    steered = tokens if isinstance(vectors, LikelihoodRecipe) else GATES * tokens
    above = base.reading(steered) * (1 - (vectors.layer + 1) / base.layers)
    epochs = vectors.bias_epochs + vectors.epochs
    fit = Cost(
        f"{vectors.recipe}, up to {epochs} epochs",
        base.reading(read) + 2 * above * epochs,
        16 * max(sae.sizes) * base.width,
    )
    found |= {stage.name: fit for stage in plan.vectors}
    arms = 2 + vectors.seeds + len(calibration.settings) - 1
    answered = arms * calibration.problems * (calibration.max_new_tokens + PROMPT)
    work = f"{arms} times {calibration.problems} problems"
    found["calibration"] = Cost(work, base.reading(answered) + thinking.reading(answered))
    return {stage.name: found[stage.name] for stage in plan.stages}


def _traces(plan: "Plan") -> tuple[int, float]:
    """How many traces, and tokens of them: of samples about, else at most."""
    if plan.samples:
        return len(plan.samples), sum(len(trace.text) for trace in plan.samples) / CHARACTERS
    recipe = plan.recipe.traces
    return recipe.count, float(recipe.count * recipe.max_new_tokens)


def _list(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return shown if len(numbers) <= 4 else f"{shown}, … {numbers[-1]}"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "under a second"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
