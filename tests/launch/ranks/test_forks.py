"""What ranks are forked from is started before the command imports PyTorch, with the compiler where ranks need it."""

import subprocess
import sys
from pathlib import Path

import pytest

from armillary.launch.ranks.local import Supervision, start_ranks


def loaded(context):
    """Whether a rank begins with the compiler."""
    return "torch._inductor.compile_fx" in sys.modules


def output(program):
    """What another process prints."""
    return subprocess.check_output([sys.executable, "-c", program], cwd=Path(__file__).parent, text=True).strip()


def test_the_fork_server_is_started_without_an_import_of_torch():
    program = "import sys; from armillary.launch import launched, start_fork_server; print('torch' in sys.modules)"
    assert output(program) == "False"


@pytest.mark.slow
@pytest.mark.parametrize("compiles", [False, True])
def test_ranks_that_compile_begin_with_the_compiler(compiles):
    program = f"import test_forks\nif __name__ == '__main__': print(test_forks.ranks({compiles}))"
    assert output(program) == str(compiles)


def ranks(compiles):
    """What a rank returns."""
    return start_ranks(loaded, 1, Supervision(compiles=compiles))
