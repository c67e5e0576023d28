"""`lm-eval-hybrid behaviors`: list, show, check, compare, make, share and convert bundles."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.bundles.versions import STEPS, is_version

if TYPE_CHECKING:
    from lm_eval_hybrid.bundles.bundle import Bundle

NAME = "NAME, NAME@VERSION, a folder, or hub:ORG/REPO@REVISION"
EXAMPLES = """\
examples:
  lm-eval-hybrid behaviors list
  lm-eval-hybrid behaviors show embedded
  lm-eval-hybrid behaviors validate embedded@2 ./mine/0.1.0
  lm-eval-hybrid behaviors diff embedded@2 ./mine/0.1.0
  lm-eval-hybrid behaviors new-version mine@0.1.0 ./edited
  lm-eval-hybrid behaviors pack mine@0.2.0 mine-0.2.0.zip
  lm-eval-hybrid behaviors push mine@0.2.0 my-lab/mine
  lm-eval-hybrid behaviors pull hub:my-lab/mine@v0.2.0
  lm-eval-hybrid behaviors import vector.gguf --layer 14 --base ORG/BASE --thinking ORG/THINKING \\
      --out ~/behaviors/kindness/1.0.0
  lm-eval-hybrid behaviors export embedded --behavior check --format steered --out check.pt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_views(actions)
    _add_makers(actions)
    _add_exchange(actions)
    _add_conversions(actions)


def run(args: argparse.Namespace) -> int | None:
    """Run the chosen action. Returns its exit status."""
    status: int | None = args.action(args)
    return status


def _add_views(actions: argparse._SubParsersAction) -> None:
    listing = actions.add_parser("list", help="list the bundles that have a name")
    listing.set_defaults(action=_list)
    show = actions.add_parser("show", help="show a bundle: models, behaviors, results")
    show.add_argument("bundle", metavar="BUNDLE", help=NAME)
    show.set_defaults(action=_show)
    validate = actions.add_parser("validate", help="check manifest, digests and tensors; exit status 1 for a fault")
    validate.add_argument("bundles", metavar="BUNDLE", nargs="+", help=NAME)
    validate.set_defaults(action=_validate)
    diff = actions.add_parser("diff", help="compare two bundles, and print the version step that the changes call for")
    diff.add_argument("before", metavar="A", help=NAME)
    diff.add_argument("after", metavar="B", help="another bundle")
    diff.set_defaults(action=_diff)
    schema = actions.add_parser("schema", help="print the JSON schema of behavior.yaml")
    schema.set_defaults(action=_schema)


def _add_makers(actions: argparse._SubParsersAction) -> None:
    renew = actions.add_parser(
        "new-version",
        help="make an edited copy of a bundle's folder its next version",
        description="Edit a copy of the bundle's folder: words and policy in behavior.yaml, tensors. This finds the "
        "changes, picks the version number that they call for, and renews digests, norms and card.",
    )
    renew.add_argument("former", metavar="BUNDLE", help="the version that was copied")
    renew.add_argument("edited", metavar="FOLDER", type=Path, help="the edited copy")
    renew.add_argument("--step", choices=STEPS, default="patch", help="the smallest step to take (default: patch)")
    _add_into(renew)
    renew.set_defaults(action=_new_version)
    record = actions.add_parser(
        "record",
        help="write the results of evaluations into their bundle",
        description="Reads every arm's newest run below DIR (lm_eval --output_path DIR --log_samples), as `compare` "
        "does, and writes scores, signed gap and interval into the bundle's folder.",
    )
    record.add_argument("bundle", metavar="BUNDLE", help="a writable folder, or a name")
    record.add_argument("runs", metavar="DIR", type=Path, help="folder to search for results_*.json, at any depth")
    record.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the bootstrap (default: 0)")
    record.set_defaults(action=_record)


def _add_exchange(actions: argparse._SubParsersAction) -> None:
    pack = actions.add_parser("pack", help="write a bundle as one zip file, the same bytes anywhere; print its sha256")
    pack.add_argument("bundle", metavar="BUNDLE", help=NAME)
    pack.add_argument("target", metavar="FILE", type=Path, nargs="?", help="default: NAME-VERSION.zip")
    pack.add_argument("--overwrite", action="store_true", help="replace an existing file")
    pack.set_defaults(action=_pack)
    unpack = actions.add_parser("unpack", help="check a packed bundle and add it to your folder of bundles")
    unpack.add_argument("archive", metavar="FILE", type=Path)
    _add_into(unpack)
    unpack.add_argument("--overwrite", action="store_true", help="replace the same version if it exists")
    unpack.set_defaults(action=_unpack)
    push = actions.add_parser("push", help="upload a bundle to the Hugging Face hub, tagged with its version")
    push.add_argument("bundle", metavar="BUNDLE", help=NAME)
    push.add_argument("repo", metavar="ORG/REPO", help="repository; created if it does not exist")
    push.add_argument("--private", action="store_true", help="create it as one that only its owners can read")
    push.set_defaults(action=_push)
    pull = actions.add_parser("pull", help="download a bundle from the hub into your folder of bundles")
    pull.add_argument("address", metavar="ADDRESS", help="hub:ORG/REPO@REVISION")
    _add_into(pull)
    pull.set_defaults(action=_pull)


def _add_conversions(actions: argparse._SubParsersAction) -> None:
    from lm_eval_hybrid.bundles.formats import READABLE, WRITABLE

    take = actions.add_parser(
        "import",
        help="make a bundle of other programs' files",
        description="Makes a bundle of: the research repository's results (reference); a folder of safetensors files "
        "and a mapping.yaml (mapping); an SAE of SAELens (saelens); a control vector of llama.cpp or repeng (gguf, "
        "repeng); a file of the harness's model `steered` (steered).",
    )
    take.add_argument("source", metavar="PATH", type=Path, help="file or folder; nothing in it is executed")
    take.add_argument("--base", required=True, metavar="ID", help="model to steer: hub id or folder")
    take.add_argument("--thinking", required=True, metavar="ID", help="model that decides when: hub id or folder")
    take.add_argument("--out", required=True, type=Path, metavar="DIR", help="the bundle's new folder")
    take.add_argument("--format", choices=READABLE, help="default: detected from the files")
    take.add_argument("--name", help="default: NAME if --out ends in NAME/VERSION, else made of the models' names")
    take.add_argument("--layer", type=int, metavar="N", help="base layer to steer after, from 0")
    take.add_argument("--sae-layer", type=int, metavar="N", help="thinking model's layer that the SAE reads, from 0")
    take.add_argument("--latents", type=_numbers, metavar="N:N", help="latents that become behaviors (default: all)")
    take.add_argument("--license", default="unknown", metavar="SPDX", help="licence of the source (default: unknown)")
    take.add_argument("--author", action="append", metavar="NAME", help="author of the source; may be repeated")
    take.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    take.set_defaults(action=_import)
    give = actions.add_parser(
        "export", help="write a behavior or the SAE in another program's format; print what is lost"
    )
    give.add_argument("bundle", metavar="BUNDLE", help=NAME)
    give.add_argument("--format", required=True, choices=WRITABLE)
    give.add_argument("--out", required=True, type=Path, metavar="PATH", help="a new file (saelens: folder)")
    give.add_argument("--behavior", metavar="KEY", help="behavior to export, for formats that hold one vector")
    give.add_argument("--coefficient", type=float, metavar="A", help="multiple of bias + vector (default: the largest)")
    give.set_defaults(action=_export)


def _add_into(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="folder of bundles (default: yours, see docs/bundles.md)"
    )


def _list(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles.store.resolve import listing
    from lm_eval_hybrid.report.bundles import print_listing

    print_listing(args.console(), listing())


def _show(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles import contents
    from lm_eval_hybrid.bundles.store.resolve import ListedBundle, resolve
    from lm_eval_hybrid.report.bundles import print_bundle

    path = resolve(args.bundle)
    found = contents.read(path)
    print_bundle(args.console(), ListedBundle(found.manifest, path), found.tensors)


def _validate(args: argparse.Namespace) -> int:
    """Print every fault of every bundle, a line each; returns 1 if there is any."""
    from lm_eval_hybrid.bundles import contents
    from lm_eval_hybrid.bundles.store.resolve import resolve

    status = 0
    for name in args.bundles:
        path = resolve(name)
        faults = contents.faults(path)
        status |= bool(faults)
        print("\n".join(faults) if faults else f"{path}: sound")
    return status


def _diff(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles.difference import compare
    from lm_eval_hybrid.report.bundles import print_difference

    print_difference(args.console(), compare(_load(args.before), _load(args.after)))


def _schema(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


def _new_version(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles.difference import next_version
    from lm_eval_hybrid.report.bundles import print_difference

    difference = next_version(_load(args.former), args.edited, args.step)
    print_difference(args.console(), difference)
    manifest = difference.after.manifest
    saved = difference.after.save(_into(args) / manifest.name / manifest.version)
    print(f"{saved.identity} written to {saved.path}")


def _record(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from lm_eval_hybrid.results import outputs, record

    _log_to_stderr()
    bundle = _load(args.bundle)
    assert bundle.path is not None
    results = record.results(outputs.read(args.runs), bundle.manifest, args.seed)
    manifest = bundle.manifest.model_copy(update={"results": results})
    saved = replace(bundle, manifest=manifest, manifest_sha256=None).save(bundle.path, overwrite=True)
    print(f"{len(results)} results recorded: {saved.identity} in {saved.path}")


def _pack(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles.manifest import read
    from lm_eval_hybrid.bundles.store import archive
    from lm_eval_hybrid.bundles.store.resolve import resolve

    path = resolve(args.bundle)
    manifest, _ = read(path)
    target = args.target or Path(f"{manifest.name}-{manifest.version}.zip")
    print(f"{target} sha256={archive.pack(path, target, args.overwrite)}")


def _unpack(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles.store import archive

    print(archive.unpack(args.archive, _into(args), args.overwrite))


def _push(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles.store import hub
    from lm_eval_hybrid.bundles.store.resolve import resolve

    print(hub.push(resolve(args.bundle), args.repo, args.private))


def _pull(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles.store import hub

    _log_to_stderr()
    print(hub.pull(args.address, _into(args)))


def _import(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles.bundle import check_target
    from lm_eval_hybrid.bundles.formats import convert
    from lm_eval_hybrid.bundles.formats.convert import ImportOptions

    _log_to_stderr()
    out = args.out.expanduser().resolve()
    check_target(out, args.overwrite)
    versioned = is_version(out.name)
    options = ImportOptions(
        name=args.name or (out.parent.name if versioned else _name(args.base, args.thinking)),
        version=out.name if versioned else "1.0.0",
        base=args.base,
        thinking=args.thinking,
        layer=args.layer,
        sae_layer=args.sae_layer,
        latents=args.latents,
        license=args.license,
        authors=tuple(args.author or ("unknown",)),
    )
    saved = convert.read(args.source, options, args.format).save(out, args.overwrite)
    print(f"{saved.identity} written to {out}")


def _export(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.bundles.formats import convert
    from lm_eval_hybrid.bundles.formats.convert import ExportOptions

    bundle = _load(args.bundle)
    lost = convert.write(bundle, ExportOptions(args.behavior, args.coefficient), args.out, args.format)
    print(f"{bundle.identity} written to {args.out}")
    for line in lost:
        print(f"lost: {line}")


def _load(name: str) -> Bundle:
    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.store.resolve import resolve

    return Bundle.load(resolve(name))


def _into(args: argparse.Namespace) -> Path:
    from lm_eval_hybrid.bundles.store.resolve import user_folder

    return args.into or user_folder()


def _name(*models: str) -> str:
    """`base--thinking`, from the last parts of the models' names."""
    parts = [re.sub(r"[^a-z0-9._-]+", "-", re.split(r"[/:]", model.rstrip("/"))[-1].lower()) for model in models]
    return "--".join(part.strip(".-_") or "model" for part in parts)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers separated by colons") from None


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
