"""Tables on a terminal and in a pipe."""

from afm_mlx.cli.output import show_table

import pytest
from rich.table import Table


@pytest.mark.parametrize("columns", ["", "40"])
def test_nothing_is_folded_in_a_pipe(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = Table("operation", "time")
    name, time = "o" * 70, "9" * 70
    table.add_row(name, time)
    show_table(table)
    assert any(name in line and time in line for line in capsys.readouterr().out.splitlines())
