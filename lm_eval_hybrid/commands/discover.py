"""`lm-eval-hybrid discover`: finds behaviors in traces and writes a bundle. The work is in `discovery.pipeline`."""

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from lm_eval_hybrid.common.distributed import Ranks
    from lm_eval_hybrid.discovery.plan import DiscoveryPlan
    from lm_eval_hybrid.models.local import LocalBackend
    from lm_eval_hybrid.models.ndif.client import NdifModel
    from lm_eval_hybrid.models.sources import ModelSource

_CONFIGURATION = (".json", ".jinja", ".model", ".txt")  # suffixes of a model's files besides its weights
BACKENDS = ("local", "remote")
STEPS = ("traces", "activations", "sae", "taxonomy", "gates", "vectors", "calibration")
EXAMPLES = """examples:
  lm-eval-hybrid discover --recipe embedded --out behaviors/mine/1.0.0
  lm-eval-hybrid discover --recipe r1-qwen-1.5b --out ~/behaviors/r1-qwen-1.5b/0.1.0 --dry-run
  lm-eval-hybrid discover --recipe my.yaml --samples out/samples_gsm8k_*.jsonl --out ~/behaviors/mine/0.1.0
  lm-eval-hybrid discover --recipe my.yaml --base-backend remote --thinking-backend remote --out ~/behaviors/mine/0.1.0
  torchrun --nproc-per-node 4 -m lm_eval_hybrid discover --recipe my.yaml --out ~/behaviors/mine/0.1.0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--recipe", required=True, metavar="NAME|FILE", help="a recipe that comes with the package, or a YAML file"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new folder of the bundle, NAME/VERSION")
    parser.add_argument("--base", help="base model, instead of the recipe's")
    parser.add_argument("--thinking", help="thinking model, instead of the recipe's")
    parser.add_argument(
        "--samples",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="read traces from files instead of generating them: samples_*.jsonl of the thinking model "
        "(--log_samples), or jsonl with a prompt or question and a response or text in each line",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="folder for the results of each stage, from which an interrupted run resumes, and for findings.html "
        "(default: NAME-VERSION.discover in the current folder)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the stages, their size and cost, and exit")
    parser.add_argument("--until", choices=STEPS, help="stop after this stage")
    parser.add_argument("--device", default="cpu", help="of both models: cpu, cuda, cuda:1, auto (default: cpu)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of both models (default: float32)",
    )
    for role in ("base", "thinking"):
        parser.add_argument(
            f"--{role}-backend",
            choices=BACKENDS,
            default="local",
            help=f"run the {role} model in this process or on an NDIF server (default: local)",
        )
    parser.add_argument("--ndif-host", metavar="URL", help="the NDIF server (default: $NDIF_HOST)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")


def run(args: argparse.Namespace) -> None:
    """Run discovery and write the bundle to `args.out`."""
    from lm_eval_hybrid.bundles.bundle import check_target
    from lm_eval_hybrid.discovery.plan import DiscoveryPlan
    from lm_eval_hybrid.discovery.recipe import load
    from lm_eval_hybrid.discovery.stages import WorkFolder
    from lm_eval_hybrid.discovery.traces import sources as traces
    from lm_eval_hybrid.models.sources import ModelSource

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = args.out.expanduser().resolve()
    check_target(out, args.overwrite)
    _check_parent(out)
    recipe = load(args.recipe, **{role: getattr(args, role) for role in ("base", "thinking") if getattr(args, role)})
    # All input is read and checked before the long work begins.
    samples = tuple(traces.read(args.samples)) if args.samples else ()
    sources = {role: ModelSource.named(role, getattr(recipe, role)) for role in ("base", "thinking")}
    configs = {role: _config(source) for role, source in sources.items()}
    identities = {role: _identity(args, source, configs[role]) for role, source in sources.items()}
    work = WorkFolder(args.work or Path(f"{out.parent.name}-{out.name}.discover"))
    plan = DiscoveryPlan(recipe, work, identities, samples)
    if args.dry_run:
        from lm_eval_hybrid.commands.discovery_plan import ModelSize, render

        args.console().print(render(plan, {role: ModelSize.of(config) for role, config in configs.items()}))
    else:
        _discover(args, out, plan, sources)


def _discover(args: argparse.Namespace, out: Path, plan: "DiscoveryPlan", sources: "dict[str, ModelSource]") -> None:
    from contextlib import nullcontext

    from lm_eval_hybrid.common.distributed import Ranks
    from lm_eval_hybrid.discovery import bundling
    from lm_eval_hybrid.discovery.bundling import make_findings
    from lm_eval_hybrid.discovery.pipeline import DiscoveryRun
    from lm_eval_hybrid.discovery.traces.pair import ModelPair
    from lm_eval_hybrid.report import findings, findings_page

    name, version, recipe, work = out.parent.name, out.name, plan.recipe, plan.work
    ranks = Ranks.from_environment()
    if ranks.first:
        plan.check()
    pair = ModelPair(_load(args, sources["base"], ranks), _load(args, sources["thinking"], ranks), recipe.prompt)
    bundling.check_manifest(pair, recipe, name, version)
    with work.locked() if ranks.first else nullcontext():
        result = DiscoveryRun(plan, pair, ranks).run(args.until)
        if result is None:
            return
        bundle = bundling.make_bundle(result, pair, recipe, name, version, tuple(args.samples or ()))
        data = make_findings(result, bundle)
        findings.write(data, work.folder / "findings.json")
        page = work.folder / "findings.html"
        findings_page.write(data, page)
        # The bundle is written last: once it exists the run is over, and another run is refused.
        bundle = bundle.save(out, args.overwrite)
    logging.info("wrote %s to %s; open %s to see the findings", bundle.identity, out, page)


def _check_parent(out: Path) -> None:
    """Check that the bundle's folder can be created, by its lowest parent that exists."""
    parent = next(path for path in out.parents if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise HybridError(f"{parent}: not a writable folder, which the bundle needs; choose another --out")


def _is_remote(args: argparse.Namespace, source: "ModelSource") -> bool:
    return bool(getattr(args, f"{source.role}_backend") == "remote")


def _config(source: "ModelSource") -> "PretrainedConfig":
    from transformers import AutoConfig

    with source.loading():
        return AutoConfig.from_pretrained(source.name, revision=source.revision)


def _identity(args: argparse.Namespace, source: "ModelSource", config: "PretrainedConfig") -> str:
    """Identifies a model in the digests of stages: its weights, dtype, and for a folder also its other files."""
    from hashlib import sha256

    if _is_remote(args, source):
        return f"{source.name}@remote"
    identity, folder = source.identity(config), Path(source.name).expanduser()
    if folder.is_dir():
        content = sha256()
        for path in sorted(path for path in folder.iterdir() if path.suffix in _CONFIGURATION and path.is_file()):
            content.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
        identity += f"+{content.hexdigest()[:12]}"
    return f"{identity} {args.dtype}"


def _load(args: argparse.Namespace, source: "ModelSource", ranks: "Ranks") -> "LocalBackend | NdifModel":
    """Load a model, or connect to it on the server."""
    if _is_remote(args, source):
        from lm_eval_hybrid.harness.loading import remote_model
        from lm_eval_hybrid.models.ndif.client import Server

        return remote_model(source, Server.choose(args.ndif_host), None, {})

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lm_eval_hybrid.models.local import LocalBackend

    # With several processes, each takes a GPU of its own.
    device = f"cuda:{ranks.local}" if args.device == "cuda" and ranks.world > 1 else args.device
    options = {"device_map": "auto"} if device == "auto" else {}
    with source.loading():
        tokenizer = AutoTokenizer.from_pretrained(source.name, revision=source.revision)
        model = AutoModelForCausalLM.from_pretrained(
            source.name, revision=source.revision, dtype=getattr(torch, args.dtype), **options
        )
        if device != "auto":
            model.to(device)  # type: ignore[arg-type]  # transformers wraps `to` without its `self`
    return LocalBackend(model.eval(), tokenizer)
