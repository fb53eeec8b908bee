from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

import mdi.errors
from mdi.cli import options
from mdi.cli.app import main
from mdi.cli.failures import report
from mdi.cli.options import parse_split
from mdi.errors import ClusterError, InternalError, LinkError, MdiError, ModelError, UserError
from mdi.model.quantise import Quant
from mdi.plan.plan import Objective

KINDS = [kind for kind in vars(mdi.errors).values() if isinstance(kind, type) and issubclass(kind, MdiError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_one_sentence_a_hint_and_its_exit_code(kind: type[MdiError], capsys: pytest.CaptureFixture[str]) -> None:
    code = report(kind("it is so", hint="do that"), debug=False)
    assert code == (2 if issubclass(kind, UserError) else 1)
    assert capsys.readouterr() == ("", "mdi: it is so\ndo that\n")


def test_what_was_noted_stands_between_the_sentence_and_the_hint(capsys: pytest.CaptureFixture[str]) -> None:
    error = ClusterError("it is so", hint="do that")
    error.add_note("attic is left out: it is off")
    report(error, debug=False)
    assert capsys.readouterr().err == "mdi: it is so\nattic is left out: it is off\ndo that\n"


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise InternalError("it is so")
    except InternalError as error:
        report(error, debug=True)
    assert "Traceback" in capsys.readouterr().err


def test_what_a_task_group_wrapped_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    nested = ExceptionGroup("outer", [RuntimeError("echo"), ExceptionGroup("inner", [LinkError("no way there")])])
    assert report(nested, debug=False) == 1
    assert capsys.readouterr().err == "mdi: no way there\n"


def test_any_other_exception_is_called_a_bug_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ValueError("so odd"), debug=False) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "mdi: this is a bug in MDI: ValueError: so odd"
    assert "--debug" in second


def test_ctrl_c_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(KeyboardInterrupt(), debug=False) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["run", "--model", "/no/such/model", "--prompt", "x"], ModelError),
        (["run", "--model", "no-such-model", "--prompt", "x"], ModelError),
        (["run", "--split", "4,x"], UserError),
        (["run", "--temperature", "-1"], UserError),
        (["run", "--max-memory", "much"], UserError),
        (["run", "--pin", "attic"], UserError),
        (["run", "--pin", "attic=3-1"], UserError),
        (["run", "--pin", "attic=1", "--split", "4,4"], UserError),
        (["plan", "--objective", "mixed", "--busy-share", "1.5"], UserError),
        (["run", "--ctx", "3"], UserError),
        (["plan", "--min-nodes", "0"], UserError),
        (["plan", "--model", "/no/such/model"], ModelError),
        (["node", "start", "--port", "70000"], UserError),
        (["node", "start", "--join", "wrong"], UserError),
        (["node", "start", "--no-such-option"], None),
        (["run", "--quant", "int3"], None),
        (["no-such-command"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_typed_wrong_exits_2_in_few_lines(
    arguments: list[str],
    kind: type[MdiError] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MDI_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert shown.out == ""
    assert "Traceback" not in shown.err
    lines = [line for line in shown.err.splitlines() if line]
    assert len(lines) <= 3
    if kind is not None:
        assert lines[0].startswith("mdi: ")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in ("run", "plan", "nodes", "node", "demo"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"mdi {mdi.__version__}\n")


def test_the_choices_are_those_of_the_pipeline() -> None:
    assert set(get_args(options.QuantName)) == {str(choice) for choice in Quant}
    assert set(get_args(options.ObjectiveName)) == {str(choice) for choice in Objective}


def test_a_split_is_a_list_of_counts() -> None:
    assert parse_split("4, 6,0") == (4, 6, 0)
    for wrong in ("", "4,", "-1,2", "a", "4;5", "9" * 7, "٣"):
        with pytest.raises(UserError):
            parse_split(wrong)


def test_a_cluster_error_is_the_clusters_fault() -> None:
    assert ClusterError("x").exit_code == 1


def test_help_loads_nothing_heavy() -> None:
    """`mdi --help` takes half a second on a Pi because the modules of the commands import the rest only when they run."""
    light = {"mdi.cli", "mdi.errors", "mdi"}
    for name in ("app", "run", "plan", "nodes", "demo", "options", "loop", "progress", "terminal", "failures", "logs"):
        tree = ast.parse((Path(options.__file__).parent / f"{name}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mdi"):
                assert node.module.rpartition(".")[0] in light or node.module in light, (name, node.module)
