"""The command `lenet`: runs and compares experiments, uses and publishes their results. The stages are scripts."""

from pathlib import Path
from typing import Annotated, Literal

from lenet.cli import Argument, Debug, Exit, Option, one_line_errors, run

Settings = Annotated[
    list[str] | None,
    Option("--set", "-S", metavar="SECTION.KEY=VALUE", help="Change a parameter; may be repeated."),
]

Network = Annotated[str, Option(metavar="REV", help="Which network: a revision of Git's or an experiment.")]

Revisions = Annotated[
    list[str] | None,
    Argument(metavar="REV", help="Revisions of Git's, experiments, or groups of them; by default the workspace."),
]

Jobs = Annotated[int | None, Option(min=1, help="Runs at once on this machine; by default one for each core.")]

OnCluster = Annotated[
    str | None,
    Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Run on this scheduler's cluster, such as tls://host:8786; not with --jobs.",
    ),
]

Host = Annotated[str, Option(help="The address to listen on; any but 127.0.0.1 and localhost needs TLS.")]


def describe(
    preset: Annotated[str | None, Argument(help="A preset; without it, the network of params.yaml.")] = None,
    debug: Debug = False,
) -> None:
    """Print a network as a table of its layers.

    The columns are operation, kernel, stride, padding, output, parameters and connections.
    """
    with one_line_errors(debug):
        from lenet.experiments.presets import foundation, load_preset, overlaid, workspace
        from lenet.params import Model

        if preset:
            values = overlaid(foundation(), (f"presets/{preset}.yaml", load_preset(preset).changes))
        else:
            values = workspace()

        import pandas

        from lenet.data.catalog import info_of
        from lenet.network.description import Layer, describe
        from lenet.network.lenet import build

        info = info_of(values["data"]["dataset"], Path("data/raw"))
        layers = describe(build(Model(**values["model"]).normalised(info.mean, info.std), info.classes))
        parameters, connections = sum(row.parameters for row in layers), sum(row.connections for row in layers)
        table = pandas.DataFrame([*layers, Layer("total", "", "", "", "", "", parameters, connections)])
        counts = dict.fromkeys(["parameters", "connections"], "{:,}".format)
        operation = f"{{:{table['operation'].str.len().max()}}}".format
        print(table.to_string(index=False, formatters=counts | {"layer": "{:6}".format, "operation": operation}))


def presets(debug: Debug = False) -> None:
    """List the presets, and where their settings come from."""
    with one_line_errors(debug):
        from lenet.errors import InputError
        from lenet.experiments.presets import load_preset, names

        known = {name: load_preset(name) for name in names()}
        if not known:
            raise InputError("presets/ has no presets; run this in the project's root")
        width = max(map(len, known))
        for name, preset in known.items():
            claim = f" (claimed: {preset.claimed:.2%})" if preset.claimed else ""
            print(f"{name:{width}}  {preset.about}{claim}\n{'':{width}}  {preset.source}")


def data(
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List the data sets: what they are, which are on this machine, their licences and citations."""
    with one_line_errors(debug):
        import json

        from lenet.data.overview import as_text, overview
        from lenet.experiments.presets import workspace

        rows = overview(Path("data/raw"), Path("data/downloads"), Path(workspace()["data"]["folder"]))
        print(json.dumps(rows, indent=2) if as_json else "\n\n".join(map(as_text, rows)))


def preset(
    name: Annotated[str, Argument(help="Its name; `lenet presets` lists them.")],
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Run a preset as a DVC experiment of the same name, or, on another data set than its own, as DATASET-NAME.

    The preset's parameters replace those of params.yaml (whose sections model and train are taken from the last
    commit), and --set replaces the preset's. The workspace is not changed: `dvc exp show` lists the result, and
    `dvc exp apply NAME` brings it into the workspace.
    """
    with one_line_errors(debug):
        from lenet.errors import InputError
        from lenet.experiments import dvc
        from lenet.experiments.presets import (
            differences,
            experiment_name,
            foundation,
            load_preset,
            output_fits,
            overlaid,
            parse_settings,
            workspace,
        )

        layers = [(f"presets/{name}.yaml", load_preset(name).changes), ("--set", parse_settings(settings or []))]
        wanted = overlaid(foundation(), *layers)
        if not output_fits(wanted):
            raise InputError(
                f"{name} has the paper's output layer, which consists of pictures of the digits 0 to 9; "
                f"it does not fit data.dataset {wanted['data']['dataset']}"
            )
        name = experiment_name(name, wanted)
        there = dvc.recorded().get(name)
        if there and there.is_of(wanted):
            print(f"{name} exists already, with these parameters and this code: dvc exp show")
        elif there:
            raise InputError(
                f"the experiment {name} exists already, with other parameters or code; rename it, "
                f"`dvc exp rename {name} NEW`, or remove it, `dvc exp remove {name}`, and run this again"
            )
        else:
            dvc.run(name, differences(wanted, workspace()))


def seeds(
    count: Annotated[int, Argument(min=2, metavar="N", help="How many runs, with the seeds 0 to N - 1.")],
    settings: Settings = None,
    name: Annotated[
        str | None,
        Option(help="The runs become the experiments NAME-seed0, ...; by default it says what --set changes."),
    ] = None,
    jobs: Jobs = None,
    scheduler: OnCluster = None,
    debug: Debug = False,
) -> None:
    """Run the experiment of params.yaml, with what --set changes, with several seeds.

    Each run is a DVC experiment, NAME-seedN, that trains in one thread; the workspace is not changed. If interrupted,
    the same command runs those that were not finished. It ends with the test accuracies, their mean and deviation;
    `lenet compare NAME OTHER` compares them with those of another NAME.
    """
    with one_line_errors(debug):
        from lenet.experiments import seeds, sweep
        from lenet.experiments.presets import overlaid, parse_settings, workspace

        changes = parse_settings(settings or [])
        seeds.check_settings(changes)
        name = name or seeds.group_name(settings or [])
        seeds.check_name(name)
        runs = seeds.runs_of(name, overlaid(workspace(), ("--set", changes)), count)
        with sweep.started(scheduler, jobs) as machinery:
            done = sweep.all_done(machinery.run(runs))
        print(seeds.summary(name, runs, done))


def sweep(
    settings: Annotated[
        list[str] | None,
        Option("--set", "-S", metavar="SECTION.KEY=VALUES", help="A parameter with values; may be repeated."),
    ] = None,
    jobs: Jobs = None,
    scheduler: OnCluster = None,
    debug: Debug = False,
) -> None:
    """Run all combinations of several parameters' values, on all cores or on a cluster.

    -S has the syntax of `dvc exp run --queue`: relu,tanh or range(0,5). Each run is a DVC experiment of the last commit
    that is named after what it changes, such as activation-tanh-learning_rate-0.01-seed0, and trains in one thread
    (unless -S sets train.threads). The workspace is not changed. If interrupted, the same command runs those that were
    not finished. A run that fails does not stop the others.
    """
    with one_line_errors(debug):
        from lenet.errors import InputError
        from lenet.experiments import sweep

        if not settings:
            raise InputError("nothing to sweep over; name values, for example -S model.activation=relu,tanh")
        runs = sweep.grid(settings)
        with sweep.started(scheduler, jobs) as machinery:
            found = machinery.run(runs)
        print(sweep.summary(runs, found[0]), end="\n\n")
        done = sweep.all_done(found)
        print(f"{len(done)} experiments; `dvc exp show` lists them")


def search(
    settings: Annotated[
        list[str] | None,
        Option("--set", "-S", metavar="SECTION.KEY=SPACE", help="A parameter with its space; may be repeated."),
    ] = None,
    trials: Annotated[int, Option(min=1, help="How many trials.")] = 40,
    batch: Annotated[
        int, Option(min=1, help="Trials proposed, and at most run, at once. Another number proposes other trials.")
    ] = 4,
    seeds: Annotated[
        int, Option(min=1, help="Train each trial with the seeds 0 to N - 1; a bad trial gets fewer.")
    ] = 1,
    seed: Annotated[int, Option(min=0, max=2**32 - 1, help="The seed by which trials are drawn.")] = 0,
    name: Annotated[str, Option(help="The trials become the experiments NAME-trial00, ...")] = "search",
    jobs: Jobs = None,
    scheduler: OnCluster = None,
    debug: Debug = False,
) -> None:
    """Search for the parameters with the best validation accuracy, up to --batch trials at once.

    A space is 0:0.4 (from 0 to 0.4; integers if the parameter is one), log(0.001,0.03) (on a logarithmic scale) or
    relu,tanh (as in `lenet sweep`). A single value is that of all trials. Optuna proposes trials; the first has the
    values of params.yaml that are in their spaces. Each is a DVC experiment of the last commit, NAME-trialN, which ends
    with training, in one thread (unless -S sets train.threads). With one seed, each trial is trained to the end. With
    several, one that is below the median of the completed trials, of which there must be five, gets no more seeds.

    Only the best of all is evaluated on the test set, as NAME-best (with several seeds, NAME-best-seedN). The workspace
    is not changed. The same command proposes the same trials, so that if interrupted it runs those that were not
    finished.
    """
    with one_line_errors(debug):
        from lenet.experiments import search, sweep

        planned = search.plan(settings or [], name, trials, batch, seeds, seed)
        with sweep.started(scheduler, jobs) as machinery:
            ended = search.run(planned, machinery)
            print(f"\n{search.summary(planned, ended)}\n", flush=True)
            done = search.evaluate(planned, search.best(ended), machinery)
        print(search.verdict(planned, done))


def scheduler(
    host: Host = "127.0.0.1",
    port: Annotated[int, Option(help="The port.")] = 8786,
    debug: Debug = False,
) -> None:
    """Run the scheduler of a cluster, until Ctrl-C.

    It is Dask's, and keeps nothing: what is done is in the Git remote and the DVC remote. docs/cluster.md says how to
    set them up, and TLS.
    """
    with one_line_errors(debug):
        from lenet.experiments import cluster

        cluster.serve(host, port)


def worker(
    address: Annotated[str, Argument(metavar="ADDRESS", help="The scheduler's, such as tls://host:8786.")],
    host: Host = "127.0.0.1",
    jobs: Jobs = None,
    debug: Debug = False,
) -> None:
    """Run experiments for a scheduler, until Ctrl-C; if it is lost, wait until one is there again.

    What its runs share, a copy of the Git repository and DVC's cache, is in the folder that LENET_FOLDER names, by
    default ~/.cache/lenet/HOSTNAME. Each host needs its own.
    """
    with one_line_errors(debug):
        from lenet.experiments import cluster
        from lenet.processor import cores

        cluster.work(address, host, jobs or cores())


def zoo(
    seeds: Annotated[int, Option(min=3, help="Runs of each preset, with the seeds 0, 1, ...")] = 3,
    settings: Settings = None,
    jobs: Jobs = None,
    scheduler: OnCluster = None,
    check: Annotated[
        bool, Option("--check", help="Run nothing: say whether the table was made from these presets and this code.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run all presets with several seeds each, and compare them.

    Each run is a DVC experiment, PRESET-seedN, that trains in one thread. If interrupted, the same command runs those
    that were not finished. When all are, the table of their test accuracies and its picture are written: for MNIST
    metrics/zoo.csv and plots/zoo.png, for another data set, --set data.dataset=NAME, metrics/zoo-NAME.csv and
    plots/zoo-NAME.png.
    """
    with one_line_errors(debug):
        import pandas

        from lenet.errors import InputError
        from lenet.experiments import sweep, zoo
        from lenet.experiments.presets import parse_settings
        from lenet.files import write_bytes, write_csv
        from lenet.results.figures import to_png

        planned = zoo.plan(seeds, parse_settings(settings or []))
        dataset = next(iter(planned.values()))[0].values["data"]["dataset"]
        name = "zoo" if dataset == "mnist" else f"zoo-{dataset}"
        table, picture = Path("metrics", f"{name}.csv"), Path("plots", f"{name}.png")
        if check:
            if stale := zoo.stale(table, planned):
                same = "".join(f" --set {text}" for text in settings or [])
                raise InputError(f"{table}: rows missing or out of date: {', '.join(stale)}; run `lenet zoo{same}`")
            print(f"{table}: up to date")
            return

        with sweep.started(scheduler, jobs) as machinery:
            rows = pandas.DataFrame(zoo.run_all(planned, machinery))
        drawn = to_png(zoo.picture(rows, dataset))
        write_csv(table, list(rows.columns), rows.itertuples(index=False))
        write_bytes(picture, drawn)
        print(f"{table}, {picture}: {len(rows)} presets")


def compare(
    a: Annotated[str, Argument(help="The workspace, a revision of Git's, an experiment, or a group of them.")],
    b: Annotated[str, Argument(help="What it is compared with.")],
    out: Annotated[Path, Option(help="Where the picture of the images that flipped goes.")] = Path(
        "dvc_plots/flips.png"
    ),
    as_json: Annotated[bool, Option("--json", help="Print JSON, and draw nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Say whether B is better than A, or whether chance could explain the difference.

    Two runs are compared by their predictions for the same test images: the accuracies with their intervals, the
    difference with its interval, McNemar's exact test, all of it for each class too, and a picture of the images that
    only one of them classifies correctly.

    Two groups of runs, each the NAME of `lenet seeds` or of a preset in the zoo, or a pattern such as 'NAME-seed[0-4]',
    are compared by the means of their accuracies. The runs of a group differ in train.seed alone.
    """
    with one_line_errors(debug):
        import json
        import sys

        from lenet.errors import InputError
        from lenet.experiments import comparison
        from lenet.experiments.revisions import load, resolve
        from lenet.files import write_bytes
        from lenet.results.figures import to_png

        runs = [[load(revision) for revision in resolve(name)] for name in (a, b)]
        if len(runs[0]) == len(runs[1]) == 1:
            result: comparison.Pair | comparison.Groups = comparison.compare(runs[0][0], runs[1][0])
        else:
            result = comparison.compare_groups((a, runs[0]), (b, runs[1]))
        if as_json:
            print(json.dumps(comparison.as_json(result), indent=2, allow_nan=False))
            return
        print(comparison.as_text(result))
        if isinstance(result, comparison.Pair):
            print("One run each: `lenet seeds 5` shows how much another seed changes.")
            if not any(result.overall.only):
                print("No image is classified correctly by only one of them.")
                return
            try:
                write_bytes(out, to_png(comparison.flipped(runs[0][0], runs[1][0])))
                print(f"{out}: the images that only one of them classifies correctly")
            except InputError as error:
                print(f"warning: no picture: {error}", file=sys.stderr)


def report(
    revisions: Revisions = None,
    out: Annotated[Path, Option(help="Where the page goes.")] = Path("dvc_plots/report.html"),
    open_it: Annotated[bool, Option("--open", help="Open it in the browser.")] = False,
    debug: Debug = False,
) -> None:
    """Write a page about a run, or one that compares several.

    It has the metrics, DVC's plots, the pictures, the network's layers, all parameters and where the results come from.
    It is one file, which needs no network and can be sent to others. The workspace is not changed.
    """
    with one_line_errors(debug):
        from lenet.experiments import report
        from lenet.experiments.revisions import WORKSPACE
        from lenet.files import write_bytes

        results = report.load_all(revisions or [WORKSPACE])
        page = report.page(results)
        write_bytes(out, page)
        print(f"{out}: {len(results)} revision{'s' if len(results) > 1 else ''}, {len(page) / 1e6:.1f} MB")
        if open_it:
            report.show(out)


def predict(
    files: Annotated[
        list[Path],
        Argument(metavar="FILE", help="Image files, folders of them, or - for an image on standard input."),
    ],
    rev: Network = "workspace",
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    explain: Annotated[
        Path | None,
        Option(
            metavar="PICTURE", help="Draw what the network saw, layer by layer, and which ink counted, to this file."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Classify image files with the trained network.

    An image may have any size and any format that Pillow reads. For a network that was trained on MNIST it shows one
    digit, dark on light or light on dark, anywhere on even paper, and is prepared as MNIST's were.

    Each line has the most probable class and its probability, or says that the image is blank or strange: less familiar
    to the network than 99% of the images that were held out for validation. If a file cannot be read, the others are
    classified, and the exit status is 1.
    """
    with one_line_errors(debug):
        import json
        import sys

        from lenet.errors import InputError, printable
        from lenet.experiments import models
        from lenet.files import write_bytes
        from lenet.results import prediction

        if explain and (len(files) > 1 or files[0].is_dir()):
            raise InputError("--explain draws one image; name one file")
        if explain and explain.exists() and explain.samefile(files[0]):
            raise InputError(f"{explain}: is the image itself; name another file for --explain")
        found = prediction.find_images(files)
        trained = models.trained(models.one(rev))
        try:
            familiar = prediction.least_familiarity(trained.network, models.validation_images(trained.revision))
        except InputError as error:
            print(f"warning: strange images cannot be flagged: {printable(str(error))}", file=sys.stderr)
            familiar = float("-inf")
        answers = prediction.answers(trained.network, trained.classes, trained.prepare, familiar, found)
        given = []
        for answer in answers:
            given.append(answer)
            if answer.problem:
                print(f"error: {printable(answer.problem)}", file=sys.stderr)
            elif not as_json:
                print(prediction.as_text(answer))
        if as_json:
            print(json.dumps([prediction.as_json(answer) for answer in given], indent=2))
        failed = any(answer.problem for answer in given)
        if explain and not failed:
            from lenet.results import explanation
            from lenet.results.figures import to_png

            if given[0].image is None:
                raise InputError(f"{explain}: not written: {files[0]} is blank, so that there is nothing to explain")
            title = prediction.as_text(given[0]._replace(file=files[0].name))
            figure = explanation.picture(trained.network, trained.classes, given[0].image, title)
            write_bytes(explain, to_png(figure))
            print(f"{explain}: what the network saw", file=sys.stderr)
    raise Exit(failed)


def export(
    out: Annotated[Path, Argument(metavar="MODEL", help="The file to write, such as model.onnx.")],
    kind: Annotated[
        Literal["onnx", "pt2"] | None,
        Option("--format", help="onnx, or pt2 for torch.export.load; by default what the file's name ends with."),
    ] = None,
    rev: Network = "workspace",
    debug: Debug = False,
) -> None:
    """Write the trained network as a program that runs without this project.

    Its input is images, uint8 [N, 28, 28], its outputs are logits and probabilities, float32 [N, classes]; padding and
    normalisation are inside. It is run on the whole test set and compared with PyTorch before it is written.
    """
    with one_line_errors(debug):
        from lenet.errors import InputError
        from lenet.experiments import models
        from lenet.files import write_bytes
        from lenet.results.export import FORMATS

        chosen = kind or out.suffix.removeprefix(".")
        if chosen not in FORMATS:
            raise InputError(f"{out}: does not end with .onnx or .pt2; name the format with --format")
        program, found = models.exported(models.trained(models.one(rev)), chosen)
        write_bytes(out, program)
        print(
            f"{out}: {len(program) / 1e3:,.0f} kB; on {found.images:,} test images the predictions are PyTorch's, "
            f"logits and probabilities to within {found.difference:.1e}"
        )


def publish(
    folder: Annotated[Path, Argument(help="The folder to write, which is empty or does not exist.")],
    rev: Annotated[str, Option(metavar="REV", help="A revision of Git's or an experiment.")] = "HEAD",
    debug: Debug = False,
) -> None:
    """Write a folder with a run's results, to hand on or to upload to a model hub or an archive.

    It has the weights, the network in ONNX, the report, a model card, the run's parameters, metrics and plots, and, as
    an RO-Crate, where all of that comes from. The same commit gives the same bytes.
    """
    with one_line_errors(debug):
        from lenet.experiments import publishing

        revision, files = publishing.publish(folder, rev)
        size = sum(map(len, files.values()))
        print(f"{folder}: commit {str(revision.commit)[:7]}, {len(files)} files, {size / 1e6:.1f} MB")


def draw(
    revisions: Revisions = None,
    out: Annotated[Path, Option(help="Where the page goes.")] = Path("dvc_plots/draw.html"),
    debug: Debug = False,
) -> None:
    """Open a page to draw on, which shows what the trained network reads; with several revisions, what each one reads.

    The probabilities and the outputs of every layer change with every stroke. It is one file, which needs no network:
    the weights are in it.
    """
    with one_line_errors(debug):
        import sys

        from lenet.errors import InputError
        from lenet.experiments import drawing, models
        from lenet.experiments.report import show
        from lenet.experiments.revisions import WORKSPACE, resolve_all
        from lenet.files import write_bytes

        wanted = resolve_all(revisions or [WORKSPACE])
        page = drawing.page([models.trained(revision) for revision in wanted])
        write_bytes(out, page)
        print(f"{out}: {len(wanted)} revision{'s' if len(wanted) > 1 else ''}, {len(page) / 1e6:.1f} MB")
        try:
            show(out)
        except InputError as error:
            print(f"warning: {error}", file=sys.stderr)


def verify(
    record: Annotated[
        bool, Option("--record", help="If all outputs are equal, record this environment in environment.lock.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Rerun what is committed and compare it, byte for byte.

    The last commit is cloned, every stage is rerun there, and each output is compared with dvc.lock. The first line
    says how that ended, and so does the exit status:

    0, equal: all outputs have the same bytes, as they have on every x86-64 processor with AVX2.

    3, explained: some differ, by no more than another arithmetic explains (an ARM processor, another PyTorch).

    1, different: they differ by more, or although the arithmetic is the same.

    The workspace and DVC's cache are not changed, and their results not used.
    """
    with one_line_errors(debug):
        import tempfile

        from lenet.experiments import verify

        with tempfile.TemporaryDirectory(prefix="lenet-verify-") as folder:
            clone = Path(folder) / "clone"
            verify.clone(clone)
            committed, stale = verify.outputs(clone), verify.stale_inputs(clone)
            verify.rerun(clone)
            here = verify.outputs(clone)
            different = [path for path, md5 in committed.items() if here.get(path) != md5]
            metrics = verify.metric_changes(clone) if different else []

        changes = verify.environment_changes(committed) if different else {}
        line, status = verify.verdict(committed, different, stale, changes, metrics)
        print(f"{line}\n")
        for path in committed:
            print(f"{path:30} {'DIFFERS' if path in different else 'equal'}")
        if stale:
            print(f"\n{verify.LOCK} was not made from the committed sources, but from other versions of:")
            print(*(f"  {name}" for name in stale), sep="\n")
        if different:
            print(f"\nThe environment in which {verify.LOCK} was made differs from this one in:")
            print(*([f"  {name}: {values}" for name, values in changes.items()] or ["  nothing"]), sep="\n")
            allowed = ", ".join(f"{name} {tolerance}" for name, tolerance in verify.TOLERANCE.items())
            print(f"\nMetrics that differ, committed and here (tolerance: {allowed}):")
            for change in metrics:
                judgement = "within" if change.tolerated else "BEYOND"
                print(f"  {change.name:40} {change.committed:<9.6g} {change.here:<9.6g} {judgement}")
        elif record:
            verify.record(committed)
    raise Exit(status)


def main() -> None:
    """Run the program `lenet`."""
    run(
        *("lenet", describe, data, presets, preset, seeds, sweep, search, zoo, scheduler, worker),
        *(compare, report, predict, draw, export, publish, verify),
    )


if __name__ == "__main__":
    main()
