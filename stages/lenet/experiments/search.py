"""A search for the parameters with the best validation accuracy. It never sees the test set.

Optuna's sampler proposes trials in batches of a fixed size, and is told of a batch when all of it has ended, in the
order of the trials' numbers. So a search is a function of its arguments, whichever trial ends first, and nothing of it
has to be kept: the same command proposes the same trials again, and `lenet.experiments.sweep` finds those that landed.

The sampler is the tree-structured Parzen estimator (Bergstra et al., "Algorithms for Hyper-Parameter Optimization",
2011), in its multivariate form (Falkner et al., "BOHB", 2018). The rule that ends a trial before it has had all seeds
is the median rule (Golovin et al., "Google Vizier", 2017).
"""

import itertools
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lenet.errors import InputError
from lenet.experiments import dvc, seeds
from lenet.experiments.origin import Finished
from lenet.experiments.presets import Values, flattened, overlaid, parse_settings, workspace
from lenet.experiments.sweep import FOLDER, Run, Sweep, all_done, check_free, combinations
from lenet.experiments.task import STAGES
from lenet.params import Params, parse_yaml

if TYPE_CHECKING:
    import optuna

ROWS = 5  # Of the table of the best.


class Space(NamedTuple):
    """The values that a parameter may have.

    Attributes
    ----------
    name : str
        `section.key`.
    values : list
        All of them or, of a range, its ends.
    scale : {"", "linear", "log"}
        On which a range is uniform; empty if it is none.
    default : object
        The value in params.yaml.
    """

    name: str
    values: list[Any]
    scale: str
    default: Any

    @property
    def is_integer(self) -> bool:
        """Whether the parameter is one, whatever the ends look like: 0:1 is a range of real numbers too."""
        section, _, key = self.name.partition(".")
        schema: Any = Params.model_fields[section].annotation
        return schema.model_fields[key].annotation is int

    @property
    def has_default(self) -> bool:
        if not self.scale:
            return any(type(value) is type(self.default) and value == self.default for value in self.values)
        low, high = self.values
        return type(self.default) in (int, float) and low <= self.default <= high

    def probes(self) -> list[Any]:
        """The values to check before a search: for a range its ends and, of integers, the second."""
        if not self.scale or not self.is_integer:
            return self.values
        low, high = self.values
        return [low, low + 1, high]

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if not self.scale:
            return CategoricalDistribution(self.values)
        low, high = self.values
        if self.is_integer:
            return IntDistribution(low, high, log=self.scale == "log")
        return FloatDistribution(low, high, log=self.scale == "log")

    def value(self, sampled: Any) -> Any:
        """What a trial runs with: a real number is rounded to four digits, as one would write it.

        The value of params.yaml stays as it is written there, because DVC's cache treats 0 and 0.0 as different.
        """
        if self.has_default and sampled == self.default:
            return self.default
        if not self.scale or self.is_integer:
            return sampled
        low, high = self.values
        return min(max(float(f"{sampled:.4g}"), float(low)), float(high))


class Plan(NamedTuple):
    """A search, checked.

    Attributes
    ----------
    name : str
        What the names of its experiments begin with.
    base : dict
        The values that trials are laid over.
    constants : dict
        `section.key` -> value, what the settings change for all trials alike.
    spaces : list of Space
        What differs among the trials.
    trials, batch, seeds, seed : int
        How many trials; how many are proposed at once; how often each is trained, with train.seed 0, 1, ...; the
        sampler's seed.
    """

    name: str
    base: Values
    constants: dict[str, Any]
    spaces: list[Space]
    trials: int
    batch: int
    seeds: int
    seed: int

    def values(self, chosen: Mapping[str, Any], seed: int) -> Values:
        """All parameters of a trial, from those of the spaces."""
        return overlaid(self.base, ("-S", _nested({**self.constants, **chosen, "train.seed": seed})))

    def runs(self, what: str, chosen: Mapping[str, Any], last: str = STAGES[-1]) -> list[Run]:
        """The experiments NAME-WHAT, one for each seed, with these values of the spaces."""
        return [
            Run(f"{self.name}-{what}{suffix}", self.values(chosen, seed), last)
            for seed, suffix in enumerate(self._suffixes())
        ]

    def names(self) -> list[str]:
        """The names of all its experiments."""
        whats = [*(self.trial(number) for number in range(self.trials)), "best"]
        return [f"{self.name}-{what}{suffix}" for what in whats for suffix in self._suffixes()]

    def trial(self, number: int) -> str:
        """What a trial is called: `trial07`. It has two digits at least, so that 8 trials can become 40."""
        return f"trial{number:02}"

    def words(self, chosen: Mapping[str, Any]) -> str:
        """What the settings change, as options of `dvc exp run`."""
        changes = {**self.constants, **chosen}
        return shlex.join(word for name, value in changes.items() for word in ("-S", f"{name}={dvc.text(value)}"))

    def _suffixes(self) -> list[str]:
        return [f"-seed{seed}" for seed in range(self.seeds)] if self.seeds > 1 else [""]


class Trial(NamedTuple):
    """A trial that has ended.

    Attributes
    ----------
    name : str
        Of its experiment or, without the seed, of its experiments.
    chosen : dict
        `section.key` -> value, of the spaces.
    accuracies : list of float
        On the validation set, in [0, 1], one for each seed that it was trained with.
    state : {"completed", "pruned", "failed"}
    message : str
        Why it failed, in one line.
    """

    name: str
    chosen: dict[str, Any]
    accuracies: list[float]
    state: str
    message: str = ""

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.accuracies)


def plan(settings: Sequence[str], name: str, trials: int, batch: int, seed_count: int, seed: int) -> Plan:
    """Read what is to be searched, `section.key=space` each, and check all of it. Of a key, the last counts.

    A space is `log(a,b)`, uniform on a logarithmic scale; `a:b`, uniform; or one or several values as `lenet sweep`
    takes them. A range of an integer parameter has integers only.

    Raises
    ------
    InputError
        A setting does not have that form, has values that are not allowed, or cannot be searched by validation
        accuracy; or a name is not free.
    """
    own = workspace()
    base = overlaid(own, ("one thread each", {"train": {"threads": 1}}))
    defaults = flattened(own)
    parsed = list({space.name: space for space in (_parse(text, defaults) for text in settings)}.values())
    _check_values(base, parsed)
    constants = {space.name: space.values[0] for space in parsed if len(space.values) == 1}
    spaces = [space for space in parsed if space.name not in constants]
    if not spaces:
        raise InputError("nothing to search over; name a space, for example -S 'train.learning_rate=log(0.001,0.03)'")
    if not {**defaults, **constants}["preprocess.validation_size"]:
        raise InputError(
            "preprocess.validation_size is 0, and without a validation set trials cannot be judged; give it a size, "
            "for example -S preprocess.validation_size=5000"
        )
    seeds.check_name(name)
    planned = Plan(name, base, constants, spaces, trials, batch, seed_count, seed)
    check_free(planned.names(), f"--name {name}: ")
    return planned


def _parse(text: str, defaults: Mapping[str, Any]) -> Space:
    name, equals, written = text.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise InputError(
            f"-S {text}: must be SECTION.KEY=SPACE, for example 'train.learning_rate=log(0.001,0.03)' or "
            "model.dropout=0:0.4"
        )
    if name == "train.seed":
        raise InputError(f"-S {text}: each trial is trained with the seeds 0, 1, ...; --seeds says how many")
    values, scale = _range(text, written)
    if not scale:
        overrides = list(dict.fromkeys(override for [override] in combinations([text])))
        values = [parse_settings([override])[section][key] for override in overrides]
    elif values[0] == values[1]:
        values, scale = values[:1], ""
    if len(values) > 1 and section in ("data", "preprocess", "evaluate", "plot"):
        raise InputError(
            f"-S {text}: only parameters of model and train can be searched, because the others change what the "
            "network is judged by, or do not change it; give it one value"
        )
    return Space(name, values, scale, defaults.get(name))


def _range(text: str, written: str) -> tuple[list[Any], str]:
    """The ends and the scale of the range that is written in a setting; no scale if it is not a range."""
    logarithmic = re.fullmatch(r"log\((.*)\)", written)
    linear = re.fullmatch(r"[^'\"\[{(,]*:[^'\"\[{(,]*", written)  # A colon that is not within something else.
    if not logarithmic and not linear:
        return [], ""
    parts = logarithmic[1].split(",") if logarithmic else written.split(":")
    ends: list[Any] = [parse_yaml(part.encode(), f"-S {text}") for part in parts]
    if len(ends) != 2 or any(type(end) not in (int, float) for end in ends):
        raise InputError(f"-S {text}: a range is two numbers, A:B or log(A,B), for example 0:0.4 or log(0.001,0.03)")
    low, high = ends
    if low > high:
        raise InputError(f"-S {text}: the range ends before it begins; write the smaller number first")
    if logarithmic and low <= 0:
        raise InputError(f"-S {text}: a logarithmic scale has only numbers greater than 0")
    return ends, "log" if logarithmic else "linear"


def _check_values(base: Values, spaces: Sequence[Space]) -> None:
    """Refuse spaces with a value that is not allowed, by itself or beside another's."""
    for name in [space.name for space in spaces if space.name not in flattened(base)]:
        overlaid(base, ("-S", _nested({name: None})))  # It says what is known.
    first = {space.name: space.default if space.has_default else space.values[0] for space in spaces}
    for one, other in itertools.combinations_with_replacement(spaces, 2):
        for value, beside in itertools.product(one.probes(), other.probes()):
            overlaid(base, ("-S", _nested({**first, one.name: value, other.name: beside})))


def _nested(values: Mapping[str, Any]) -> Values:
    """Values by their full names, section.key, as section -> key -> value."""
    found: Values = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        found.setdefault(section, {})[key] = value
    return found


def run(planned: Plan, sweep: Sweep) -> list[Trial]:
    """Run all trials, each to the end of training, and return them in the order of their numbers.

    Raises
    ------
    InputError
        All have failed, or an experiment of one of their names has other parameters or code.
    """
    study = _study(planned)
    distributions = {space.name: space.distribution() for space in planned.spaces}
    ended: list[Trial] = []
    while len(ended) < planned.trials:
        count = min(planned.batch, planned.trials - len(ended))
        ended += _run_batch(planned, study, [study.ask(distributions) for _ in range(count)], sweep)
    if all(trial.state == "failed" for trial in ended):
        raise InputError(
            f"all trials failed ({len(ended)}), the first because: {ended[0].message}; {FOLDER}/logs has what they "
            "printed"
        )
    return ended


def _study(planned: Plan) -> "optuna.Study":
    try:
        import optuna
    except ModuleNotFoundError:
        raise InputError("a search needs Optuna, which is not installed; run `pip install -e '.[cluster]'`") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # The liar keeps the trials of a batch apart: none of them has a result when the next one is proposed.
    sampler = optuna.samplers.TPESampler(seed=planned.seed, multivariate=True, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=optuna.pruners.MedianPruner())
    # So that the best trial is not worse than what there was before.
    study.enqueue_trial({space.name: space.default for space in planned.spaces if space.has_default})
    return study


def _run_batch(planned: Plan, study: "optuna.Study", asked: list["optuna.Trial"], sweep: Sweep) -> list[Trial]:
    """Run trials with one seed after the other, and tell the study how they have ended."""
    from optuna.trial import TrialState

    chosen = [{space.name: space.value(trial.params[space.name]) for space in planned.spaces} for trial in asked]
    names = [f"{planned.name}-{planned.trial(trial.number)}" for trial in asked]
    for name, values in zip(names, chosen, strict=True):
        print(f"{name}: {planned.words(values)}", flush=True)
    accuracies: list[list[float]] = [[] for _ in asked]
    states, messages = ["completed" for _ in asked], ["" for _ in asked]
    runs = [
        planned.runs(planned.trial(trial.number), values, "train") for trial, values in zip(asked, chosen, strict=True)
    ]
    for seed in range(planned.seeds):
        going = [index for index, state in enumerate(states) if state == "completed"]
        done, failures = sweep.run([runs[index][seed] for index in going])
        for index in going:
            name = runs[index][seed].name
            if name in failures:
                states[index], messages[index] = "failed", failures[name]
                continue
            accuracies[index].append(done[name].metrics["validation_accuracy"])
            asked[index].report(statistics.fmean(accuracies[index]), seed)
            if seed + 1 < planned.seeds and asked[index].should_prune():
                states[index] = "pruned"
                print(f"{names[index]}: worse than half of the trials, no more seeds", flush=True)
    trials = [Trial(*fields) for fields in zip(names, chosen, accuracies, states, messages, strict=True)]
    for proposed, trial in zip(asked, trials, strict=True):
        match trial.state:
            case "completed":
                study.tell(proposed, trial.accuracy)
            case "pruned":  # What was reported last counts.
                study.tell(proposed, state=TrialState.PRUNED)
            case _:
                study.tell(proposed, state=TrialState.FAIL)
    return trials


def best(trials: Sequence[Trial]) -> Trial:
    """The completed trial with the greatest validation accuracy, the first of several."""
    return max((trial for trial in trials if trial.state == "completed"), key=lambda trial: trial.accuracy)


def evaluate(planned: Plan, chosen: Trial, sweep: Sweep) -> dict[str, Finished]:
    """Run the chosen trial once more, as NAME-best, and to the end: only this one meets the test set.

    Raises
    ------
    InputError
        It failed, or there is an experiment of that name with other parameters or code: the choice of another search.
    """
    return all_done(sweep.run(planned.runs("best", chosen.chosen)))


def summary(planned: Plan, trials: Sequence[Trial]) -> str:
    """How the trials ended, the best of them, and the choice; all by validation accuracy."""
    import pandas

    counts = [(sum(trial.state == state for trial in trials), state) for state in ("completed", "pruned", "failed")]
    ranked = sorted((trial for trial in trials if trial.state == "completed"), key=lambda trial: -trial.accuracy)
    rows = [
        {"trial": trial.name, "validation accuracy": f"{trial.accuracy:.2%}", "seeds": len(trial.accuracies)}
        | {name: dvc.text(value) for name, value in trial.chosen.items()}
        for trial in ranked[:ROWS]
    ]
    first, choice = trials[0], best(trials)
    before = ""
    if first.state == "completed" and all(space.has_default for space in planned.spaces):
        before = f"; with the values of params.yaml, {first.name}, {first.accuracy:.2%}"
    return "\n".join(
        [
            f"{len(trials)} trials: {', '.join(f'{count} {state}' for count, state in counts if count)}",
            pandas.DataFrame(rows).to_string(index=False),
            "",
            f"The best is {choice.name}: {planned.words(choice.chosen)}",
            f"Validation accuracy {choice.accuracy:.2%}{before}.",
            "As the best of many it is optimistic: luck has helped to choose it. The test accuracy, below, is not.",
        ]
    )


def verdict(planned: Plan, done: Mapping[str, Finished]) -> str:
    """The test accuracy of the choice, over the seeds."""
    accuracies = [experiment.metrics["accuracy"] for experiment in done.values()]
    over = f" (mean over {len(accuracies)} seeds)" if len(accuracies) > 1 else ""
    return f"{planned.name}-best: test accuracy {statistics.fmean(accuracies):.2%}{over}"
