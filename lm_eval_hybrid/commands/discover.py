"""`lm-eval-hybrid discover`: arguments, models, traces; the work is in `pipeline`."""

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from lm_eval_hybrid.common.distributed import Ranks
    from lm_eval_hybrid.discovery.plan import Plan
    from lm_eval_hybrid.models.local import LocalBackend
    from lm_eval_hybrid.models.ndif.model import NdifModel
    from lm_eval_hybrid.models.sources import Source

_READ_BY = (".json", ".jinja", ".model", ".txt")  # files of a model's folder
BACKENDS = ("local", "remote")
STEPS = ("traces", "activations", "sae", "taxonomy", "gates", "vectors", "calibration")
EXAMPLES = """examples:
  lm-eval-hybrid discover --recipe embedded --out behaviors/mine/1.0.0
  lm-eval-hybrid discover --recipe r1-qwen-1.5b --out ~/behaviors/r1-qwen-1.5b/0.1.0 --dry-run
  lm-eval-hybrid discover --recipe my.yaml --samples out/samples_gsm8k_*.jsonl --out ~/behaviors/mine/0.1.0
  lm-eval-hybrid discover --recipe my.yaml --base-backend remote --thinking-backend remote --out ~/behaviors/mine/0.1.0
  torchrun --nproc-per-node 4 -m lm_eval_hybrid.commands.main discover --recipe my.yaml --out ~/behaviors/mine/0.1.0
"""


def add_arguments(parser: argparse.ArgumentParser, console: "Callable[[], Console]") -> None:
    """Declares the command's arguments; `console` makes what tables are shown on."""
    parser.set_defaults(console=console)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--recipe", required=True, metavar="NAME|FILE", help="a recipe of the package, or a YAML file")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the bundle's new folder, NAME/VERSION")
    parser.add_argument("--base", help="base model, in place of the recipe's")
    parser.add_argument("--thinking", help="thinking model, in place of the recipe's")
    parser.add_argument(
        "--samples",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="take the traces from there, decode none: samples_*.jsonl of the thinking model (--log_samples), or jsonl "
        "with a prompt or question and a response or text a line",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="keeps every stage's work, to go on from, and findings.html (default: NAME-VERSION.discover in the "
        "current folder)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the stages, their sizes and cost; do nothing")
    parser.add_argument("--until", choices=STEPS, help="end after this stage")
    parser.add_argument("--device", default="cpu", help="of both models: cpu, cuda, cuda:1, auto (default: cpu)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of both (default: float32)"
    )
    for role in ("base", "thinking"):
        parser.add_argument(
            f"--{role}-backend",
            choices=BACKENDS,
            default="local",
            help=f"the {role} model is in this process, or on an NDIF server (default: local)",
        )
    parser.add_argument("--ndif-host", metavar="URL", help="the server (default: $NDIF_HOST)")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")


def run(args: argparse.Namespace) -> None:
    """Runs discovery and writes the bundle to `args.out`."""
    from lm_eval_hybrid.bundles.bundle import check_target
    from lm_eval_hybrid.discovery.plan import Plan
    from lm_eval_hybrid.discovery.recipe import load
    from lm_eval_hybrid.discovery.stages import Workshop
    from lm_eval_hybrid.discovery.traces import sources

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    places = {role: getattr(args, f"{role}_backend") for role in ("base", "thinking")}
    out = args.out.expanduser().resolve()
    check_target(out, args.overwrite)
    _check_parent(out)
    recipe = load(args.recipe, **{key: getattr(args, key) for key in ("base", "thinking") if getattr(args, key)})
    # All that can be wrong is read and checked before the long work begins.
    samples = tuple(sources.read(args.samples)) if args.samples else ()
    models = {role: _source(role, getattr(recipe, role)) for role in ("base", "thinking")}
    configs = {role: _config(source) for role, source in models.items()}
    workshop = Workshop(args.work or Path(f"{out.parent.name}-{out.name}.discover"))
    identities = {
        role: f"{source.name}@remote"
        if places[role] == "remote"
        else f"{_identity(source, configs[role])} {args.dtype}"
        for role, source in models.items()
    }
    plan = Plan(recipe, workshop, identities, samples)
    if args.dry_run:
        from lm_eval_hybrid.commands.discovery_plan import Model, render

        args.console().print(render(plan, {role: Model.of(config) for role, config in configs.items()}))
        return
    _make(args, out, plan, models, places)


def _make(
    args: argparse.Namespace, out: Path, plan: "Plan", models: "dict[str, Source]", places: dict[str, str]
) -> None:
    from contextlib import nullcontext

    from lm_eval_hybrid.common.distributed import Ranks
    from lm_eval_hybrid.discovery import bundling, summary
    from lm_eval_hybrid.discovery.pipeline import Run
    from lm_eval_hybrid.discovery.traces.pair import Pair
    from lm_eval_hybrid.report import findings, findings_page

    name, version, recipe = out.parent.name, out.name, plan.recipe
    ranks = Ranks.from_environment()
    if ranks.first:
        plan.check()

    base, thinking = (
        _reach(models[role], args.ndif_host)
        if places[role] == "remote"
        else _load(models[role], args.device, args.dtype, ranks)
        for role in ("base", "thinking")
    )
    pair = Pair(base, thinking, recipe.prompt)
    bundling.check(pair, recipe, name, version)
    with plan.workshop.held() if ranks.first else nullcontext():
        run = Run(plan, pair, ranks)
        found = run.run(args.until)
        if found is None:
            return
        bundle = bundling.bundle(found, pair, recipe, name, version, tuple(args.samples or ()))
        shown = summary.summarise(found, bundle)
        findings.write(shown, plan.workshop.folder / "findings.json")
        findings_page.write(shown, plan.workshop.folder / "findings.html")
        # Last: once it is there the run is over, and another one would be refused.
        bundle = bundle.save(out, args.overwrite)
    logging.info(
        "%s written to %s; what was found, to look at: %s", bundle.identity, out, plan.workshop.folder / "findings.html"
    )


def _check_parent(out: Path) -> None:
    """That a folder can be made there, which shows in the lowest one above it that is there."""
    parent = next(path for path in out.parents if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise HybridError(f"{parent}: must be a folder to write to, for the bundle; found none; name another --out")


def _source(role: str, name: str) -> "Source":
    from lm_eval_hybrid.models.sources import Source

    return Source.named(role, name)


def _config(source: "Source") -> object:
    from transformers import AutoConfig

    with source.loading():
        return AutoConfig.from_pretrained(source.name, revision=source.revision)


def _identity(source: "Source", config: object) -> str:
    """What says which model it is; of a folder also what it is read by: configuration, tokenizer, chat template."""
    from hashlib import sha256

    told, folder = source.identity(config), Path(source.name).expanduser()
    if not folder.is_dir():
        return told
    content = sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _READ_BY and path.is_file()):
        content.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return f"{told}+{content.hexdigest()[:12]}"


def _reach(source: "Source", host: str | None) -> "NdifModel":
    from lm_eval_hybrid.harness.loading import remote_model
    from lm_eval_hybrid.models.ndif.client import Server

    return remote_model(source, Server.choose(host), None, {})


def _load(source: "Source", device: str, dtype: str, ranks: "Ranks") -> "LocalBackend":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lm_eval_hybrid.models.local import LocalBackend

    # Several processes take a GPU each.
    device = f"cuda:{ranks.local}" if device == "cuda" and ranks.world > 1 else device
    placed = {"device_map": "auto"} if device == "auto" else {}
    with source.loading():
        tokenizer = AutoTokenizer.from_pretrained(source.name, revision=source.revision)
        model = AutoModelForCausalLM.from_pretrained(
            source.name, revision=source.revision, dtype=getattr(torch, dtype), **placed
        )
        if device != "auto":
            model = model.to(device)
    return LocalBackend(model.eval(), tokenizer)
