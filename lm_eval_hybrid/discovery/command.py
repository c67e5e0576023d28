"""`lm-eval-hybrid discover`: arguments, models, traces; the work is in `pipeline`."""

import argparse
import logging
import random
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.errors import HybridError

if TYPE_CHECKING:
    from lm_eval_hybrid.backends.local import LocalBackend

EXAMPLES = """examples:
  lm-eval-hybrid discover --recipe embedded --out behaviors/embedded/1.0.0
  lm-eval-hybrid discover --recipe my.yaml --samples out/samples_gsm8k_*.jsonl --out ~/behaviors/mine/0.1.0
"""
EMBEDDED_PROMPTS = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--recipe", required=True, metavar="NAME|FILE", help="a recipe of the package, or a YAML file")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the bundle's new folder, NAME/VERSION")
    parser.add_argument("--base", help="base model, in place of the recipe's")
    parser.add_argument("--thinking", help="thinking model, in place of the recipe's")
    parser.add_argument("--prompts", metavar="FILE", help="jsonl with a `prompt` a line, in place of the recipe's")
    parser.add_argument(
        "--samples",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="take the traces from there, decode none: samples_*.jsonl of the thinking model (--log_samples), or jsonl "
        "with a prompt, question or problem and a response or text a line",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="keeps traces and activations, to go on from (default: NAME-VERSION.discover in the current folder)",
    )
    parser.add_argument("--device", default="cpu", help="of both models (default: cpu)")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")


def run(args: argparse.Namespace) -> None:
    """Runs discovery and writes the bundle to `args.out`."""
    from lm_eval_hybrid.behaviors.bundle import check_target
    from lm_eval_hybrid.discovery import pipeline, sources, traces
    from lm_eval_hybrid.discovery.recipe import load

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = args.out.resolve()
    check_target(out, args.overwrite)
    named = {key: getattr(args, key) for key in ("base", "thinking", "prompts") if getattr(args, key)}
    recipe = load(args.recipe, **named)
    name, version, samples = out.parent.name, out.name, tuple(args.samples or ())
    # All that can be wrong is read and checked before the long work begins.
    given = sources.read(samples) if samples else _prompts(recipe.prompts, recipe.seed)
    base, thinking = (_load(role, getattr(recipe, role), args.device) for role in ("base", "thinking"))
    pipeline.check(base, thinking, recipe, name, version)
    work = _folder(args.work or Path(f"{name}-{version}.discover"))
    found = given if samples else traces.write(work / "traces.jsonl", thinking, given, recipe.max_new_tokens)
    bundle = pipeline.discover(base, thinking, found, recipe, name, version, work, samples)
    logging.info("%s written to %s", bundle.save(out, args.overwrite).identity, out)


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HybridError(f"--work must be a folder; found {path}: {error.strerror}; name another") from None
    return path


def _prompts(source: str, seed: int) -> list[str]:
    from lm_eval_hybrid.discovery.traces import read_prompts

    if source != "embedded":
        return read_prompts(Path(source))
    from lm_eval_hybrid.embedded.corpus import prompt, unseen

    return [prompt(problem) for problem in islice(unseen(random.Random(f"discover:{seed}")), EMBEDDED_PROMPTS)]


def _load(role: str, name: str, device: str) -> "LocalBackend":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lm_eval_hybrid.backends.local import LocalBackend
    from lm_eval_hybrid.backends.sources import Source

    source = Source.named(role, name)
    with source.loading():
        tokenizer = AutoTokenizer.from_pretrained(source.name, revision=source.revision)
        model = AutoModelForCausalLM.from_pretrained(source.name, revision=source.revision, dtype=torch.float32)
    return LocalBackend(model.to(device).eval(), tokenizer)
