"""Bad input that every version must refuse: one line, status 2, naming what is wrong.

The table was first run on the release before the modules were rearranged: what that one refused stays refused, in
whatever words. A case names only the facts that its message must state.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import lm_eval_hybrid
from lm_eval_hybrid.commands.main import main
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.paths import bundles_dir
from lm_eval_hybrid.harness.arguments import HybridArguments

RECIPE = (Path(lm_eval_hybrid.__file__).parent / "recipes" / "embedded.yaml").read_text(encoding="utf-8")
EMBEDDED = max(path for path in (bundles_dir() / "embedded").iterdir() if path.is_dir())


def _text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _bundle(folder: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> Path:
    """A copy of the embedded bundle with a changed manifest."""
    copied = folder / "embedded" / EMBEDDED.name
    shutil.copytree(EMBEDDED, copied)
    manifest = copied / "behavior.yaml"
    fields = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    change(fields)
    manifest.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    return copied


def _flipped(folder: Path) -> Path:
    """The embedded bundle with one bit of its tensors changed."""
    copied = _bundle(folder)
    tensors = copied / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    return copied


# (command line, what its message must name). {name} stands for a file or folder made by FILES.
COMMANDS: list[tuple[str, tuple[str, ...]]] = [
    ("compare {empty}", ("{empty}",)),
    ("compare {missing}", ("missing",)),
    ("report {empty}", ("{empty}",)),
    ("rescore {missing}", ("missing",)),
    ("rescore {words}", ("words",)),
    ("rerun {missing} --out {new}", ("missing",)),
    ("rerun {words} --out {new}", ("words",)),
    ("rerun {list} --out {new}", ("list",)),
    ("run --tasks gsm8k_embeded --out {new}", ("gsm8k_embeded",)),
    ("run --tasks gsm8k_embedded --arms hybird --out {new}", ("hybird",)),
    ("run --tasks gsm8k_embedded --metadata x --out {new}", ("--metadata",)),
    ("run --tasks gsm8k_embedded --model_args arm=base --out {new}", ("arm",)),
    ("run --tasks gsm8k_embedded --out {words}", ("words",)),
    ("plan --tasks gsm8k_embedded --measure 0", ("--measure",)),
    ("plan --tasks gsm8k_embedded --from {missing}", ("missing",)),
    ("plan --tasks gsm8k_embedded --machine {words}", ("words",)),
    ("discover --recipe embeded --out {new}/1.0.0", ("embeded",)),
    ("discover --recipe {words} --out {new}/1.0.0", ("words",)),
    ("discover --recipe {recipe} --out {new}/1.0.0", ("colour",)),
    ("discover --recipe embedded --out {new}/first", ("first",)),
    ("discover --recipe embedded --out {bundle}", ("{bundle}",)),
    ("discover --recipe embedded --samples {missing} --out {new}/1.0.0", ("missing",)),
    ("discover --recipe embedded --samples {words} --out {new}/1.0.0", ("words",)),
    ("discover --recipe embedded --base {missing} --out {new}/1.0.0", ("missing",)),
    ("behaviors show nothing", ("nothing",)),
    ("behaviors show embedded@9.9.9", ("9.9.9",)),
    ("behaviors show embedded@one", ("one",)),
    ("behaviors show {empty}", ("behavior.yaml",)),
    ("behaviors validate {empty}", ("behavior.yaml",)),
    ("behaviors diff embedded nothing", ("nothing",)),
    ("behaviors show {unknown_field}", ("colour",)),
    ("behaviors show {other_schema}", ("schema_version",)),
    ("behaviors show {bad_name}", ("name",)),
    ("behaviors show {alias}", ("behavior.yaml",)),
    ("behaviors show {tag}", ("behavior.yaml",)),
    ("behaviors show {twice}", ("behavior.yaml",)),
    ("behaviors import {missing} --base embedded:base --thinking embedded:thinking --out {new}/1.0.0", ("missing",)),
    ("behaviors import {words} --base embedded:base --thinking embedded:thinking --out {new}/1.0.0", ("words",)),
    ("behaviors export embedded --format gguf --out {words}", ("words",)),
    ("behaviors new-version embedded {missing}", ("missing",)),
]

FILES: dict[str, Callable[[Path], Path]] = {
    "missing": lambda folder: folder / "missing",
    "new": lambda folder: folder / "new",
    "empty": lambda folder: (folder / "empty").mkdir() or folder / "empty",  # type: ignore[func-returns-value]
    "words": lambda folder: _text(folder / "words", "only words\n"),
    "list": lambda folder: _text(folder / "list.json", "[]"),
    "recipe": lambda folder: _text(folder / "recipe.yaml", RECIPE + "\ncolour: red\n"),
    "bundle": _bundle,
    "unknown_field": lambda folder: _bundle(folder, lambda fields: fields.update(colour="red")),
    "other_schema": lambda folder: _bundle(folder, lambda fields: fields.update(schema_version=99)),
    "bad_name": lambda folder: _bundle(folder, lambda fields: fields.update(name="../up")),
    "alias": lambda folder: _text(folder / "alias" / "behavior.yaml", "a: &x [1]\nb: *x\n").parent,
    "tag": lambda folder: _text(folder / "tag" / "behavior.yaml", "a: !!python/object:os.system x\n").parent,
    "twice": lambda folder: _text(folder / "twice" / "behavior.yaml", "name: a\nname: b\n").parent,
}

# Model arguments, and what the message must name.
ARGUMENTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"arm": "hybird"}, ("arm", "hybird")),
    ({"behaviours": "x"}, ("behaviours", "behaviors")),
    ({"behaviors": "nothing"}, ("nothing",)),
    ({"behaviors": "embedded@9.9.9"}, ("9.9.9",)),
    ({"behaviors": "[]"}, ("behaviors",)),
    ({"behaviors": "../up@1"}, ("../up",)),
    ({"behaviors": "ftp://host/x"}, ("ftp",)),
    ({"behaviors": 7}, ("behaviors", "7")),
    ({"behaviors": "{flipped}"}, ("tensors.safetensors",)),
    ({"behaviors": "[embedded,embedded]"}, ("embedded",)),
    ({"only": "[nothing]"}, ("nothing",)),
    ({"without": "[nothing]"}, ("nothing",)),
    ({"scale": "[nothing*2]"}, ("nothing",)),
    ({"scale": "[check]"}, ("scale",)),
    ({"scale": {"check": "x"}}, ("scale",)),
    ({"strict": "odd"}, ("strict", "odd")),
    ({"coefficients": "a:b"}, ("coefficients", "a:b")),
    ({"coefficients": []}, ("coefficients",)),
    ({"coefficients": "inf", "select": "guardrail"}, ("coefficients", "inf")),
    ({"windows": "0.5"}, ("windows", "0.5")),
    ({"windows": "-1"}, ("windows", "-1")),
    ({"gate": "sometimes"}, ("gate", "sometimes")),
    ({"select": "best"}, ("select", "best")),
    ({"select": "fixed", "coefficients": "1:2"}, ("fixed", "1.0")),
    ({"select": "mlp", "windows": "1:2"}, ("mlp", "windows")),
    ({"arm": "base", "gate": "always"}, ("arm=base", "gate=always")),
    ({"seed": "x"}, ("seed", "x")),
    ({"thinking_prompt": "shout"}, ("thinking_prompt", "shout")),
    ({"base_backend": "cloud"}, ("base_backend", "cloud")),
    ({"pretrained": "gpt2"}, ("pretrained",)),
    ({"truncation": True}, ("truncation",)),
    ({"tp_plan": "auto"}, ("tp_plan",)),
    ({"backend": "seq2seq"}, ("seq2seq",)),
    ({"ndif_timeout": -1, "base_backend": "remote"}, ("ndif_timeout", "-1")),
    ({"ndif_host": "nowhere", "base_backend": "remote"}, ("nowhere",)),
]


@pytest.mark.parametrize(("command", "facts"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_is_refused(
    command: str,
    facts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    made = {name: str(make(tmp_path)) for name, make in FILES.items() if f"{{{name}}}" in command}
    before = {path for path in tmp_path.rglob("*")}
    assert main(command.format(**made).split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("lm-eval-hybrid: error: ")
    for fact in facts:
        assert fact.format(**made) in lines[-1]
    assert not [path for path in tmp_path.rglob("*.yaml") if path not in before]


@pytest.mark.parametrize(("given", "facts"), ARGUMENTS, ids=[json.dumps(given) for given, _ in ARGUMENTS])
def test_model_arguments_are_refused(given: dict[str, Any], facts: tuple[str, ...], tmp_path: Path) -> None:
    if given.get("behaviors") == "{flipped}":
        given = {"behaviors": str(_flipped(tmp_path))}
    with pytest.raises(HybridError) as refused:
        ours, _ = HybridArguments.split(dict(given))
        ours.policy(ours.suite().manifest.steering)
        ours.server()
    message = str(refused.value)
    assert "\n" not in message
    for fact in facts:
        assert fact in message
