"""The table of `discover --dry-run`: a run's stages and an estimate of their cost, from configurations alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text
from transformers import AutoModelForCausalLM, PretrainedConfig

from lm_eval_hybrid.discovery.taxonomy import grading
from lm_eval_hybrid.discovery.vectors.fitting import LikelihoodRecipe
from lm_eval_hybrid.report.terminal import duration, make_table

if TYPE_CHECKING:
    from lm_eval_hybrid.discovery.plan import DiscoveryPlan

CHARACTERS = 3.5  # in a token of English text with formulas
PROMPT = 120  # tokens
SENTENCE = 22  # tokens
GATES = 0.12  # share of positions at which the models disagree, as in the paper's example
GATE = 150  # bytes on disk of a disagreement
SPEEDS = ((1e11, "two cores"), (2e14, "an H100 in bfloat16 at half its peak"))  # FLOP a second


@dataclass(frozen=True)
class ModelSize:
    """A model's size, from its configuration."""

    parameters: int
    layers: int
    width: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> "ModelSize":
        from accelerate import init_empty_weights

        text = config.get_text_config()
        with init_empty_weights():
            parameters = AutoModelForCausalLM.from_config(config).num_parameters()
        return cls(parameters, text.num_hidden_layers, text.hidden_size)

    def forward_flop(self, tokens: float, layers: int | None = None) -> float:
        """FLOP of a forward pass through the first `layers`, or all: 2 per parameter and token (Kaplan et al. 2020)."""
        return 2 * self.parameters * tokens * (1 if layers is None else layers / self.layers)


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage: a description of its work, FLOP, and bytes on disk."""

    work: str
    flop: float = 0.0
    disk: float = 0.0


def render(plan: "DiscoveryPlan", models: Mapping[str, ModelSize]) -> RenderableType:
    """The table of stages and their states, and the total of those to do."""
    table = make_table("stage", "state", "work", numbers=("TFLOP", "disk"))
    flop = disk = 0.0
    cost_of = costs(plan, models)
    for stage in plan.stages:
        cost = cost_of[stage.name]
        state = "done" if stage.done else "started" if stage.started else "to do"
        table.add_row(stage.name, state, cost.work, f"{cost.flop / 1e12:,.3g}", _bytes(cost.disk))
        if not stage.done:
            flop, disk = flop + cost.flop, disk + cost.disk
    weights = sum(model.parameters for model in models.values())
    times = "; ".join(f"{duration(flop / speed)} at {speed / 1e12:g} TFLOP/s ({what})" for speed, what in SPEEDS)
    lines = [
        f"to do: {flop / 1e12:,.3g} TFLOP, {_bytes(disk)} of disk in {plan.work.folder}",
        f"time: about {times}; more where traces or answers are generated in small batches",
        f"weights: {weights:,} parameters, {_bytes(4 * weights)} in float32, {_bytes(2 * weights)} in bfloat16",
    ]
    judge = plan.recipe.judge
    if judge is not None:
        lines.append(f"judge {judge.model}: {grading.estimate(max(plan.recipe.sae.sizes), judge)}")
    return Group(table, *(Text(line) for line in lines))


def costs(plan: "DiscoveryPlan", models: Mapping[str, ModelSize]) -> dict[str, StageCost]:
    """The cost of each stage by name. Token counts are upper bounds, the rest are estimates."""
    recipe, base, thinking = plan.recipe, models["base"], models["thinking"]
    count, tokens = _traces(plan)
    sentences, with_prompts = tokens / SENTENCE, tokens + count * PROMPT
    sae, vectors, calibration = recipe.sae, recipe.vectors, recipe.calibration
    given = f"{count:,} traces, " if plan.samples else ""
    by_name = {
        "traces": StageCost(
            f"{count:,} traces, at most {tokens:,.0f} tokens", thinking.forward_flop(tokens), tokens * CHARACTERS
        ),
        "activations": StageCost(
            f"layers: {_list(sae.layers)}; {given}about {sentences:,.0f} sentences",
            thinking.forward_flop(tokens, max(sae.layers) + 1),
            sentences * thinking.width * 4 * 2 * len(sae.layers),
        ),
        "taxonomy": StageCost("titles and grades by a judge"),
        "gates": StageCost(
            "both models read all traces",
            base.forward_flop(with_prompts) + thinking.forward_flop(with_prompts),
            GATES * tokens * GATE,
        ),
    }
    weights = sum(sae.sizes) * thinking.width
    # Encoder and decoder, forward and backward: 12 FLOP per weight and row.
    training = 12.0 * weights * sae.seeds * sae.steps * min(sae.batch, sentences)
    sizes = f"sizes: {_list(sae.sizes)}; initializations: {sae.seeds}"
    by_name |= {stage.name: StageCost(sizes, training, 8 * weights) for stage in plan.saes}
    steered = tokens if isinstance(vectors, LikelihoodRecipe) else GATES * tokens
    above = base.forward_flop(steered) * (1 - (vectors.layer + 1) / base.layers)
    epochs = vectors.bias_epochs + vectors.epochs
    fit = StageCost(
        f"{vectors.recipe}, up to {epochs} epochs",
        base.forward_flop(with_prompts) + 2 * above * epochs,
        16 * max(sae.sizes) * base.width,
    )
    by_name |= {stage.name: fit for stage in plan.vectors}
    arms = 2 + vectors.seeds + len(calibration.settings) - 1
    answered = arms * calibration.problems * (calibration.max_new_tokens + PROMPT)
    by_name["calibration"] = StageCost(
        f"{calibration.problems} problems, {arms} times",
        base.forward_flop(answered) + thinking.forward_flop(answered),
    )
    return {stage.name: by_name[stage.name] for stage in plan.stages}


def _traces(plan: "DiscoveryPlan") -> tuple[int, float]:
    """Number of traces, and of their tokens: an estimate for given samples, else an upper bound."""
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
