import io

from rich.console import Console

from lm_eval_hybrid.judging.verdicts import Agreement
from lm_eval_hybrid.report.agreement import render


def test_a_row_of_each_model_and_no_markup_of_its_name() -> None:
    console = Console(width=100, file=io.StringIO(), highlight=False)
    found = {"gsm8k_hybrid base [red]": Agreement(3, 1, 1, 2, 3), "math500_hybrid base": Agreement(1200, 0, 0, 0)}
    console.print(render(found | {"empty": Agreement(0, 0, 0, 0, 5)}, "gpt-4.1 at [b]https://host/v1"))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "model rule right judge right agree kappa only rule only judge unclear" in lines
    assert "gsm8k_hybrid base [red] 57.1% 71.4% 57.1% 0.087 1 2 3" in lines
    assert "math500_hybrid base 100.0% 100.0% 100.0% - 0 0 0" in lines
    assert "empty - - - - 0 0 5" in lines
    assert any("judge: gpt-4.1 at [b]https://host/v1" in line for line in lines)
