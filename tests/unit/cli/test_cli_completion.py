"""What shells complete: bash really asked, the others' scripts read by their shells where there are any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from generator.cli.main import COMMANDS, main
from support.foreign import FOREIGN
from support.mesh import REPOSITORY

BIN = Path(sys.executable).parent
ASK = r"""
eval "$(nipmesh completion bash)"
complete -p nipmesh >/dev/null
while read -r -a COMP_WORDS; do
    [ "${COMP_WORDS[-1]}" = "''" ] && COMP_WORDS[-1]=""
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    _nipmesh_completion nipmesh "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    echo "${COMPREPLY[*]}"
done
"""
"""Bash's own completion function, called as readline calls it, once for each line."""


def completed(*lines: str, folder: Path = REPOSITORY) -> list[list[str]]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ASK], input="".join(f"{line}\n" for line in lines),
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [line.split() for line in done.stdout.splitlines()]


def test_bash_completes_commands_options_and_the_manifests_names() -> None:
    lines = {
        "nipmesh re": ["render", "restart"],
        "nipmesh ''": sorted(COMMANDS),
        "nipmesh up --g": ["--gateway-listen"],
        "nipmesh restart ''": ["invoice", "nip", "payment"],
        "nipmesh logs s": ["supervisor"],
        "nipmesh scale pay": ["payment"],
        "nipmesh explain invoice/InvoiceService/C": [
            "invoice/InvoiceService/CancelInvoice",
            "invoice/InvoiceService/CreateInvoice",
        ],
        f"nipmesh -f {FOREIGN}/mesh.yaml restart t": ["tariff", "tracking"],
        "nipmesh sagas --state s": ["stuck"],
    }
    assert dict(zip(lines, completed(*lines), strict=True)) == lines


def test_a_manifest_with_mistakes_is_no_reason_for_words_in_the_prompt(tmp_path: Path) -> None:
    assert completed("nipmesh restart ''", "nipmesh explain a/", folder=tmp_path) == [[], []]
    (tmp_path / "mesh.yaml").write_text("mesh: shop\nservices:\n  orders: {run: [}\n")
    assert completed("nipmesh restart ''", folder=tmp_path) == [[]]
    (tmp_path / "mesh.yaml").write_text("mesh: shop\nprotos: [none]\nservices:\n  orders: {runs: x}\n")
    assert completed("nipmesh restart ''", "nipmesh explain orders/", folder=tmp_path) == [["orders"], []]


def test_completing_a_command_imports_none_of_them() -> None:
    script = "import sys; from generator.cli.main import main\n"
    script += "try:\n    main(prog_name='nipmesh')\nexcept SystemExit:\n    pass\n"
    script += "print([name for name in sys.modules if name.startswith(('generator.cli.', 'yaml', 'google'))])"
    asked = {"_NIPMESH_COMPLETE": "bash_complete", "COMP_WORDS": "nipmesh re", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | asked, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["plain,render", "plain,restart", "['generator.cli.main']"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_reads_its_script(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell], prog_name="nipmesh")
    assert result.exit_code == 0
    assert f"_NIPMESH_COMPLETE={shell}_complete" in result.output
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    syntax = subprocess.run([shell, "-n"], input=result.output, capture_output=True, text=True, timeout=30, check=False)
    assert (syntax.returncode, syntax.stderr) == (0, "")


def test_without_a_shell_it_says_which_there_are() -> None:
    result = CliRunner().invoke(main, ["completion"], prog_name="nipmesh")
    assert result.exit_code == 2
    assert "nipmesh completion bash" in result.output
    assert CliRunner().invoke(main, ["completion", "tcsh"], prog_name="nipmesh").exit_code == 2
