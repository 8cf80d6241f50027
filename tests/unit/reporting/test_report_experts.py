"""The section on experts: loads, the router over time, dense and MoE side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mm1_pipeline.config.model import (
    ConnectorConfig,
    DecoderConfig,
    MM1Config,
    MoEConfig,
    VisionConfig,
)
from mm1_pipeline.config.report import ReportConfig
from mm1_pipeline.models.checkpoint import save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.reporting.checkpoint import summarize_model
from mm1_pipeline.reporting.inputs import ReportInputs
from mm1_pipeline.reporting.page import Cell, Chart, Table
from mm1_pipeline.reporting.sections.experts import _active_parameters, experts_section


def rows(num_steps: int) -> list[dict]:
    load = [[0.75, 0.25], [0.5, 0.5]]
    terms = {
        "load_balance": 1.1,
        "router_entropy": [0.6, 0.5],
        "router_dead": [0.0, 1.0],
        "router_load": load,
        "router_load_by_stream": [[shares, shares, [0.0, 0.0]] for shares in load],
    }
    return [
        {
            "step": step,
            "losses": {"caption": 1.0, "interleaved": 1.0, "text": 1.0},
            "positions": {"text": 10, "image": 20, "padding": 3},
            "terms": terms,
        }
        for step in range(1, num_steps + 1)
    ]


def held_out(loss: float) -> dict:
    return {"streams": {"caption": {"loss": loss, "n_tokens": 9}}}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    vision = VisionConfig(
        image_size=16, patch_size=8, d_model=16, num_layers=1, num_heads=2, d_ff=16
    )
    decoder = DecoderConfig(
        vocab_size=32, d_model=16, num_layers=5, num_heads=2, num_kv_heads=1, d_ff=24
    )
    dense = MM1Config(vision=vision, connector=ConnectorConfig(num_tokens=4), decoder=decoder)
    moe = dataclasses.replace(decoder, moe=MoEConfig(num_experts=4, every_n_layers=2))
    shapes = {"pretrain": dense, "upcycle": dataclasses.replace(dense, decoder=moe)}
    for name, config in shapes.items():
        save_model(build_model(config, 3, seed=0), tmp_path / name)
    return {name: tmp_path / name for name in shapes}


def test_loads_router_and_the_comparison_are_shown(models: dict[str, Path]) -> None:
    inputs = ReportInputs(
        config=ReportConfig(),
        training={"upcycle": rows(30), "dense_control": [{**row, "terms": {}} for row in rows(30)]},
        held_out_loss={
            "models": {
                "pretrain": held_out(2.0),
                "dense_control": held_out(1.5),
                "upcycle": held_out(1.375),
            }
        },
        models=models,
    )
    section = experts_section(inputs)
    assert section is not None
    charts = [block for block in section.blocks if isinstance(block, Chart)]
    assert len(charts) == 4
    assert "layer 2, interleaved" in str(charts[0].svg)
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    names = [row[0] for row in table.rows]
    assert names == ["pretrain", "dense_control", "upcycle"]
    assert table.rows[1][3] == table.rows[2][3] == "900", "equal further tokens"
    cell = table.rows[2][4]
    assert isinstance(cell, Cell)
    assert cell.detail == "\N{MINUS SIGN}0.125"
    assert table.rows[0][1] == table.rows[1][2], "the control has the dense shape"


def test_active_parameters_are_the_configs(models: dict[str, Path]) -> None:
    summary = summarize_model(models["upcycle"])
    assert summary is not None
    decoder = DecoderConfig(**{**summary.config["decoder"], "moe": MoEConfig(
        num_experts=4, every_n_layers=2)})  # fmt: skip
    rest = summary.num_parameters["vision"] + summary.num_parameters["connector"]
    assert _active_parameters(summary) == rest + decoder.num_active_parameters


def test_without_experts_there_is_no_section() -> None:
    assert experts_section(ReportInputs(config=ReportConfig())) is None
