"""``arimage evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from arimage.cli import options


def evaluate(
    config: Annotated[Path, typer.Argument(help="An evaluation, for example configs/nano/evaluate.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example cases=20 or model=runs/nano/nano.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report.")] = Path("evaluation"),
    group: Annotated[list[str] | None, typer.Option("--group", help="Only this group; may be repeated.")] = None,
    threads: options.Threads = None,
    ray: options.Ray = None,
    cluster: options.ClusterFile = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Measure on held-out cases what a model can do; JSON, a table and a contact sheet.

    arimage evaluate configs/nano/evaluate.yaml

    arimage evaluate configs/nano/evaluate.yaml model=runs/nano/nano cases=20 -o runs/nano/evaluation
    """
    from functools import partial

    from arimage.cli.console import Console, print_json, use_threads
    from arimage.cli.pools import check_pools, open_pools
    from arimage.errors import UsageError, nearest
    from arimage.evaluation.config import EvaluateConfig
    from arimage.evaluation.report import REPORT, markdown, write_report
    from arimage.evaluation.run import distances, make_judge, rows, tokenizer_rows
    from arimage.evaluation.run import evaluate as run
    from arimage.files import check_writable
    from arimage.inference.api import load
    from arimage.yaml_files import load_yaml

    check_writable(output / name for name in REPORT)
    check_pools(ray, cluster)
    use_threads(threads)
    wanted = load_yaml(config, EvaluateConfig, overrides or [])
    for name in group or ():
        if name not in wanted.groups:
            raise UsageError(f"--group: there is no group {name!r}{nearest(name, wanted.groups)}")
    if group:
        wanted = wanted.model_copy(update={"groups": {name: wanted.groups[name] for name in group}})
    console = Console(quiet)
    pipeline, judge = load(wanted.model), make_judge(wanted)
    if wanted.part == "tokenizer":
        outcomes, table, figures = [], tokenizer_rows(wanted, pipeline, judge.assets), {}
    else:
        spread_over = None
        if ray is not None:
            from arimage.scale.spread import spread

            connected, pools = open_pools(ray, cluster)
            spread_over = partial(spread, connected, pools.pool("diffusion"))
        outcomes = run(wanted, pipeline, judge, console.note, spread_over)
        codes_only = wanted.part == "autoregressive"
        table, figures = rows(outcomes), {} if codes_only else distances(outcomes, wanted, judge)
        wanted = wanted.model_copy(update={"shown": 0}) if codes_only else wanted
    about = {
        "model": pipeline.checkpoint.name,
        "weights_sha256": pipeline.networks.weights_hash(),
        "part": wanted.part,
        "options": wanted.options,
        "cases": wanted.cases,
    }
    write_report(output, table, figures, outcomes, judge.assets.fonts, wanted.shown, about)
    if json:
        print_json({row.ability: row.share for row in table} | figures)
    else:
        print(markdown(table, figures))
