import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from lm_eval_hybrid import __version__
from lm_eval_hybrid.commands.main import COMMANDS, main
from tests.results.outputs import PLAIN, STEERED, samples, write
from tests.tiny_system import write_system

HEAVY = ("lm_eval", "nnsight", "numpy", "pydantic", "rich", "torch", "transformers", "yaml")


def ends(*argv: str) -> int:
    """Exit status where argparse or the harness ends the program."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    return end.value.code


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["compare", "--help"], ["behaviors", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys, lm_eval_hybrid.commands.main as cli\n"
        f"try: cli.main({argv})\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"found = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    # Isolated from the start-up files that other installed packages bring.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_has_examples(capsys: pytest.CaptureFixture) -> None:
    assert ends("--help") == 0
    shown = capsys.readouterr().out
    assert "lm-eval-hybrid compare results --svg comparison.svg" in shown
    assert all(command in shown for command in ("eval", *COMMANDS))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture) -> None:
    assert ends(command, "--help") == 0
    shown = capsys.readouterr().out
    assert f"usage: lm-eval-hybrid {command}" in shown and f"\n  lm-eval-hybrid {command} " in shown


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert ends("--version") == 0
    assert capsys.readouterr().out == f"lm-eval-hybrid {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["behaviors"], ["compare"], ["nonsense"], ["compare", "x", "--seed", "-1"]])
def test_misuse_shows_usage(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    assert ends(*argv) == 2
    assert capsys.readouterr().err.startswith("usage: lm-eval-hybrid")


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lm_eval_hybrid", "compare", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"lm-eval-hybrid: error: {tmp_path} has no results of model hybrid")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    write(folder, "base", {"toy": samples([0, 1] * 20)})
    write(folder, "hybrid", {"toy": samples([1, 1] * 20)}, tokens=[STEERED, PLAIN] * 20)
    write(folder, "thinking", {"toy": samples([1, 1] * 20)})
    return folder


def test_compare_prints_the_table_and_an_answer(outputs: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", str(outputs)]) == 0
    shown = capsys.readouterr().out
    assert "+100.0% [+100.0, +100.0]" in shown
    assert "toy, document 0: base wrong, hybrid right" in shown
    assert "[compute: So 4] apples." in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_compare_shows_the_document_asked_for(outputs: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", str(outputs), "--document", "toy:3", "--seed", "5"]) == 0
    shown = capsys.readouterr().out
    assert "toy, document 3: base right, hybrid right" in shown
    assert "bootstrap 5 " in shown
    assert main(["compare", str(outputs), "--document", "99"]) == 2
    assert "has no document '99' with token records" in capsys.readouterr().err


def test_compare_draws_a_picture(outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = tmp_path / "picture.svg"
    assert main(["compare", str(outputs), "--svg", str(picture)]) == 0
    text = " ".join("".join(ElementTree.parse(picture).getroot().itertext()).replace("\xa0", " ").split())
    assert "+100.0% [+100.0, +100.0]" in text
    assert "[compute" not in text  # by colour, though the terminal had none
    assert "#e69f00" in picture.read_text().lower()
    assert main(["compare", str(outputs), "--svg", str(tmp_path / "no" / "folder.svg")]) == 2
    assert "folder.svg cannot be written" in capsys.readouterr().err


def test_eval_hands_its_arguments_to_the_harness(capsys: pytest.CaptureFixture) -> None:
    before = list(sys.argv)
    assert ends("eval", "--help") == 0
    assert "usage: lm-eval " in capsys.readouterr().out
    assert ends("eval", "run", "--no_such_option", "1") == 2
    assert "--no_such_option" in capsys.readouterr().err
    assert sys.argv == before


@pytest.mark.slow
def test_eval_and_compare_meet(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    system = write_system(tmp_path)
    documents = tmp_path / "toy.jsonl"
    documents.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(3)))
    (tmp_path / "toy.yaml").write_text(
        "task: toy\ndataset_path: json\noutput_type: generate_until\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {documents}}}}}\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        "metric_list: [{metric: exact_match}]\ngeneration_kwargs: {until: ['###'], max_gen_toks: 12}\n"
    )
    rest = f"--tasks toy --include_path {tmp_path} --log_samples --output_path {tmp_path / 'o'}".split()
    chosen = f"behaviors={system.bundle},dtype=float32"
    assert main(["eval", "--model", "hybrid", "--model_args", chosen, "--device", "cpu", *rest]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "o")]) == 0
    shown = capsys.readouterr().out
    assert "hybrid 0.0% [0.0, 56.1] undefined: base and" in " ".join(shown.split())
    assert "bundle: tiny@1.0.0#" in shown
    assert "toy, document " in shown
    assert f"lm_eval_hybrid {__version__}" in shown
    assert main(["eval", "--model", "hybrid", "--model_args", "arm=nonsense", *rest]) == 2
    assert "nonsense" in capsys.readouterr().err.splitlines()[-1]
