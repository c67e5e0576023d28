import torch

from lm_eval_hybrid.decoding.chooser import Steerer
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.tokens.bridge import Choices
from tests.decoding.comparing import of_package
from tests.oracle.models import random_steering, tiny_pair


def test_no_double_precision_on_the_device() -> None:
    """Some devices (mps) have none. `meta` stands for one: its tensors hold no numbers, but have a type."""
    device, steering = torch.device("meta"), of_package(random_steering(tiny_pair("llama")))
    steerer = Steerer(Policy(coefficients=(0.1, 1.0), windows=(1, 0)), steering, Choices(), device)
    dtypes = [value.dtype for value in vars(steerer).values() if getattr(value, "device", None) == device]
    assert dtypes
    assert torch.float64 not in dtypes
