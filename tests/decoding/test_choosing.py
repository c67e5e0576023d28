import torch

from lm_eval_hybrid.decoding.chooser import Chooser
from lm_eval_hybrid.decoding.policy import Policy
from tests.decoding.comparing import of_package
from tests.oracle.models import random_steering, tiny_pair


def test_no_double_precision_on_the_device() -> None:
    """Some devices (mps) have none. `meta` stands for one: its tensors hold no numbers, but have a type."""
    device, steering = torch.device("meta"), of_package(random_steering(tiny_pair("llama")))
    chooser = Chooser(Policy(coefficients=(0.1, 1.0), windows=(1, 0)), steering, None, device)
    there = [value.dtype for value in vars(chooser).values() if getattr(value, "device", None) == device]
    assert there
    assert torch.float64 not in there
