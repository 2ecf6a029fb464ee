"""The paper's parameter counts, as the benchmark checks them."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks import parameter_counts
from benchmarks.parameter_counts import TABLES, Setting


def test_every_figure_of_the_paper_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    parameter_counts.main()
    printed = capsys.readouterr().out
    assert printed.count("✓") == sum(map(len, TABLES.values())) == 18
    assert "✗" not in printed
    for figure in ("666,624 = 66.66", "183,600 = 18.36", "2,820,096", "163,600"):
        assert figure in printed


@pytest.mark.parametrize("figure", [0, 1])
def test_one_wrong_figure_fails(
    figure: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    title, settings = "methods, shallow", list(TABLES["methods, shallow"])
    spoilt = ("76,801", "7.69")[figure]
    paper = [spoilt if at == figure else right for at, right in enumerate(settings[1].paper)]
    settings[1] = settings[1]._replace(paper=tuple(paper))
    monkeypatch.setitem(TABLES, title, tuple(settings))
    with pytest.raises(SystemExit) as stopped:
        parameter_counts.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().out.count("✗") == 1


@pytest.mark.parametrize("source", ["by_formula", "on_modules"])
def test_one_wrong_count_of_ours_fails(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setting, source, lambda setting: 76_801)
    with pytest.raises(SystemExit):
        parameter_counts.main()


def test_what_is_counted_is_trained_and_holds_no_memory() -> None:
    for setting in (setting for table in TABLES.values() for setting in table):
        module: nn.Module = parameter_counts._module(setting)
        assert all(parameter.requires_grad and parameter.is_meta for parameter in module.parameters())
