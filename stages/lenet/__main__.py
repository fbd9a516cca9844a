"""`lenet`: what people do by hand with networks and results. The stages of the pipeline are scripts of their own."""

from pathlib import Path
from typing import Annotated

import typer

from lenet.cli import Debug, one_line_errors, run


def describe(
    preset: Annotated[str | None, typer.Argument(help="A file of presets/; without it, params.yaml as it is.")] = None,
    debug: Debug = False,
) -> None:
    """Print the network as a table of its layers: kernel, stride, padding, output, parameters, connections."""
    with one_line_errors(debug):
        from lenet.experiments.presets import foundation, load_preset, overlaid, workspace
        from lenet.params import Model

        if preset:
            values = overlaid(foundation(), (f"presets/{preset}.yaml", load_preset(preset).changes))
        else:
            values = workspace()

        import pandas

        from lenet.network.description import Layer, describe
        from lenet.network.lenet import build

        layers = describe(build(Model(**values["model"])))
        parameters, connections = sum(row.parameters for row in layers), sum(row.connections for row in layers)
        table = pandas.DataFrame([*layers, Layer("total", "", "", "", "", "", parameters, connections)])
        counts = dict.fromkeys(["parameters", "connections"], "{:,}".format)
        operation = f"{{:{table['operation'].str.len().max()}}}".format
        print(table.to_string(index=False, formatters=counts | {"layer": "{:6}".format, "operation": operation}))


def preset(
    name: Annotated[str, typer.Argument(help="A file of presets/, without .yaml.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a parameter; may be repeated."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run a preset as the DVC experiment of its name, and leave the workspace as it is.

    Its parameters are those of params.yaml (model and train as committed), over them the preset's, over these the
    --set. Then: dvc exp show; to have its parameters and results in the workspace: dvc exp apply NAME.
    """
    with one_line_errors(debug):
        from lenet.errors import InputError
        from lenet.experiments import dvc
        from lenet.experiments.presets import differences, foundation, load_preset, overlaid, parse_settings, workspace

        layers = [(f"presets/{name}.yaml", load_preset(name).changes), ("--set", parse_settings(settings or []))]
        wanted = overlaid(foundation(), *layers)
        there = dvc.recorded().get(name)
        if there and there.is_of(wanted):
            print(f"{name} is there already, with these parameters and this code: dvc exp show")
        elif there:
            raise InputError(
                f"the experiment {name} is there already, of other parameters or code; keep it under another name, "
                f"`dvc exp rename {name} NEW`, or let it go, `dvc exp remove {name}`, and run this again"
            )
        else:
            dvc.run(name, differences(wanted, workspace()))


def zoo(
    seeds: Annotated[int, typer.Option(min=3, help="Runs of each preset, with the seeds 0, 1, ...")] = 3,
    table: Annotated[Path, typer.Option(help="Where the table goes.")] = Path("metrics/zoo.csv"),
    picture: Annotated[Path, typer.Option(help="Where its picture goes.")] = Path("plots/zoo.png"),
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once; without it, one a core.")] = None,
    debug: Debug = False,
) -> None:
    """Run all presets with several seeds each, and compare their test accuracies in a table and a picture.

    Each run is a DVC experiment, PRESET-seedN, that trains in one thread. Interrupted, the same command runs those that
    were not finished. The two files are written when all are.
    """
    with one_line_errors(debug):
        import pandas

        from lenet.experiments import zoo
        from lenet.files import write_bytes, write_csv
        from lenet.processor import cores
        from lenet.results.figures import to_png

        rows = pandas.DataFrame(zoo.run_all(zoo.plan(seeds), jobs or cores()))
        drawn = to_png(zoo.picture(rows))
        write_csv(table, list(rows.columns), rows.itertuples(index=False))
        write_bytes(picture, drawn)
        print(f"{table}, {picture}: {len(rows)} presets")


def verify(
    record: Annotated[
        bool, typer.Option("--record", help="Where every output is equal, note this environment in environment.lock.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Clone what is committed, rerun every stage there, and compare each output with dvc.lock to the byte.

    Exit status 0 if all are equal. If not, 1: then it says what is not as it was in the environment where they were
    made, as environment.lock recorded it, and whether the metrics are within what other rounding explains. The
    workspace and DVC's cache are neither used nor changed.
    """
    with one_line_errors(debug):
        import tempfile

        from lenet.errors import InputError
        from lenet.experiments import verify

        with tempfile.TemporaryDirectory(prefix="lenet-verify-") as folder:
            clone = Path(folder) / "clone"
            verify.clone(clone)
            committed, stale = verify.outputs(clone), verify.stale_inputs(clone)
            verify.rerun(clone)
            here = verify.outputs(clone)
            different = [path for path, md5 in committed.items() if here.get(path) != md5]
            metrics = verify.metric_changes(clone) if different else []

        print()
        for path in committed:
            print(f"{path:30} {'DIFFERS' if path in different else 'equal'}")
        if stale:
            print(f"\n{verify.LOCK} was not made from what is committed beside it, but from other versions of:")
            print(*(f"  {name}" for name in stale), sep="\n")
        if not different:
            if record:
                verify.record(committed)
            print(f"all {len(committed)} outputs are those of {verify.LOCK}, to the byte")
            return
        print("\nIn the environment, what is not as it was where they were made:")
        print(*(f"  {line}" for line in verify.environment_changes(committed) or ["nothing"]), sep="\n")
        allowed = ", ".join(f"{name} {tolerance}" for name, tolerance in verify.TOLERANCE.items())
        print(f"\nMetrics, as committed and here (tolerance: {allowed}):")
        for change in metrics:
            judgement = "within" if change.tolerated else "BEYOND"
            print(f"  {change.name:40} {change.committed:<9.6g} {change.here:<9.6g} {judgement}")
        beyond = any(not change.tolerated for change in metrics)
        raise InputError(
            f"{len(different)} of {len(committed)} outputs are not those of {verify.LOCK}; their metrics are "
            f"{'beyond' if beyond else 'within'} the tolerance"
        )


def main() -> None:
    """Run the program `lenet`."""
    run("lenet", describe, preset, zoo, verify)


if __name__ == "__main__":
    main()
