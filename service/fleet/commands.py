"""``vbon fleet``: the service as a fleet on Ray Serve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vbon.cli.errors import errors_as_lines
from vbon.cli.typer_help import HelpCommand, group_type

fleet_cli = typer.Typer(cls=group_type({}), add_completion=False, no_args_is_help=True)


@fleet_cli.callback()
def _fleet() -> None:
    """Run front ends, policies and reward models as separately scaled parts on Ray Serve."""


@fleet_cli.command(cls=HelpCommand)
def up(
    config: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="configuration of Ray Serve; docs/fleet.md has one"
        ),
    ],
) -> None:
    """Start a fleet and serve until stopped.

    Without a Ray cluster at RAY_ADDRESS, a cluster of this machine alone is started, and ended at the end.
    It is the same as `serve run CONFIG`.

    Examples:
    vbon fleet up fleet.yaml
    RAY_ADDRESS=head:6379 vbon fleet up fleet.yaml
    """
    from service.fleet import check_ray

    with errors_as_lines():
        check_ray()
    from ray.serve.scripts import cli

    sys.argv[0] = "serve"
    cli(["run", str(config)])


@fleet_cli.command(cls=HelpCommand)
def check(
    config: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="configuration of Ray Serve; docs/fleet.md has one"
        ),
    ],
) -> None:
    """Check a configuration without starting anything, and print the parts that it makes.

    Examples:
    vbon fleet check fleet.yaml
    """
    from service.fleet import check_ray

    with errors_as_lines():
        check_ray()
        from service.fleet.config_file import read_fleets  # imports a reader of YAML, as Ray does

        for name, settings in read_fleets(config).items():
            from service.fleet.application import parts

            for part, scale in parts(settings).items():
                most = "" if scale.max_replicas is None else f" to {scale.max_replicas}"
                typer.echo(
                    f"{name}: {part}: {scale.replicas}{most} replicas of {scale.cpus:g} cores and "
                    f"{scale.gpus:g} GPUs"
                )


@fleet_cli.command(cls=HelpCommand)
def bench(
    pairs: Annotated[int, typer.Option(min=1, help="times that each side is measured")] = 5,
    requests: Annotated[
        int,
        typer.Option(
            min=1,
            help="requests of one measurement, one at a time; ten times as many with more in flight",
        ),
    ] = 100,
    token_ms: Annotated[
        float, typer.Option(min=0, help="milliseconds of a token of the fake engines")
    ] = 2.0,
    tokens: Annotated[int, typer.Option(min=1, help="tokens of a sample")] = 16,
    n: Annotated[int, typer.Option(min=2, help="N of best-of-N")] = 16,
    proxy: Annotated[bool, typer.Option("--proxy", help="measure through Serve's proxy")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="file for every figure, with provenance")
    ] = None,
) -> None:
    """Measure what a fleet adds to a request on this machine, over engines that do no work.

    Both sides run at once and are measured in turns: a fleet of one front end and one replica of each
    model, and the same service in one process.

    Examples:
    vbon fleet bench
    vbon fleet bench --proxy --pairs 3 --json fleet.json
    """
    from service.fleet import check_ray

    with errors_as_lines():
        check_ray()
        from service.fleet.bench.run import FleetBenchSettings, run_fleet_bench

        run_fleet_bench(
            FleetBenchSettings(
                pairs=pairs,
                requests=requests,
                token_ms=token_ms,
                tokens=tokens,
                n=n,
                proxy=proxy,
                json_file=json_file,
            )
        )
