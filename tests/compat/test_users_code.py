from __future__ import annotations

import torch

import lq
from lq.compat.users_code import is_users_code


def test_a_folder_of_the_user_may_have_the_name_of_a_package() -> None:
    assert is_users_code("/home/me/torch/train.py")
    assert is_users_code("C:\\Users\\me\\lq\\net.py")
    assert is_users_code("<stdin>")


def test_what_torch_and_lq_hold_or_generate_is_not_the_users() -> None:
    assert not is_users_code(torch.nn.modules.linear.__file__)
    assert not is_users_code(str(lq.__file__))
    assert not is_users_code("<eval_with_key>.3")
