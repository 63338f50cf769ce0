from pathlib import Path

from tests.compat.private_names import private_names


def test_private_names_of_others_are_used_in_compat_only() -> None:
    assert private_names() == {}


def test_such_a_name_is_found_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "fast.py").write_text("import torch\n_mine = torch._C._nn\n")
    (tmp_path / "tree.py").write_text("from torch.utils._pytree import tree_map\nprint(tree_map, _mine)\n")
    (tmp_path / "compat.py").write_text("import torch._dynamo\n")
    assert private_names(tmp_path) == {"core/fast.py": {"_C", "_nn"}, "tree.py": {"torch.utils._pytree.tree_map"}}
