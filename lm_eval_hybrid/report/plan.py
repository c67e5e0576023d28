"""What a discovery run would do, and what that takes: a table, made from configurations alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, PretrainedConfig

from lm_eval_hybrid.discovery import grading
from lm_eval_hybrid.discovery.vectors import Likelihood

if TYPE_CHECKING:
    from lm_eval_hybrid.discovery.pipeline import Plan

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
    for stage, cost in zip(plan.stages, costs(plan, models), strict=True):
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


def costs(plan: "Plan", models: Mapping[str, Model]) -> Iterator[Cost]:
    """Of each stage, in the order of `Plan.stages`: bounds where lengths are not known, else estimates."""
    recipe, base, thinking = plan.recipe, models["base"], models["thinking"]
    count, tokens = _traces(plan)
    sentences = tokens / SENTENCE
    sae = recipe.sae
    written = 0.0 if plan.samples else thinking.reading(tokens)
    yield Cost(f"{count:,} traces, {_most(plan)} {tokens:,.0f} tokens", written, tokens * CHARACTERS)
    deepest = max(sae.layers) + 1
    disk = sentences * thinking.width * 4 * 2 * len(sae.layers)
    yield Cost(
        f"layers: {_list(sae.layers)}; about {sentences:,.0f} sentences", thinking.reading(tokens, deepest), disk
    )
    latents = sum(sae.sizes) * sae.seeds
    for _ in sae.layers:
        work = f"sizes: {_list(sae.sizes)}; starts: {sae.seeds}"
        # Encoder and decoder, forward and backward: 12 a weight and row.
        yield Cost(
            work, 12.0 * latents * thinking.width * sae.steps * min(sae.batch, sentences), 8 * latents * thinking.width
        )
    yield Cost("titles after words" if recipe.judge is None else f"titles and grades by {recipe.judge.model}")
    read = tokens + count * PROMPT
    yield Cost("both models over all traces", base.reading(read) + thinking.reading(read), GATES * tokens * GATE)
    vectors = recipe.vectors
    steered = tokens if isinstance(vectors, Likelihood) else GATES * tokens
    above = 1 - (vectors.layer + 1) / base.layers
    for _ in range(vectors.seeds):
        epochs = vectors.bias_epochs + vectors.epochs
        work = f"{vectors.recipe}, up to {epochs} epochs"
        flop = base.reading(read) + 2 * base.reading(steered) * above * epochs
        yield Cost(work, flop, 16 * max(sae.sizes) * base.width)
    calibration = recipe.calibration
    arms = (2 + vectors.seeds + len(calibration.settings) - 1) if calibration.problems else 0
    answered = arms * calibration.problems * (calibration.max_new_tokens + PROMPT)
    yield Cost(
        f"{arms} times {calibration.problems} problems" if arms else "none",
        base.reading(answered) + thinking.reading(answered),
    )


def _traces(plan: "Plan") -> tuple[int, float]:
    """How many traces, and tokens of them: of samples about, else at most."""
    if plan.samples:
        return len(plan.samples), sum(len(trace.text) for trace in plan.samples) / CHARACTERS
    recipe = plan.recipe.traces
    return recipe.count, float(recipe.count * recipe.max_new_tokens)


def _most(plan: "Plan") -> str:
    return "about" if plan.samples else "at most"


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
