"""The winner of a search against uniform widths and against 200 random schemes.

Run with ``python -m benchmarks.search_winner [--random]``; about twenty minutes on two cores, and
as long again with ``--random``. BeeNet1 on the default soundscapes, each of the three locations
left out once: trained in floating point on the others, searched by the default strategy with
validation windows of the others, and the winner and two neighbours on the front fine-tuned for
ten epochs, of which the rule chooses again. Uniform 8 and 4 bits are fine-tuned alike. F1 is that
on the location left out, at the threshold of the validation windows; bytes are those of the
.tflite. With ``--random``, 200 random schemes are measured as whole trials on the first fold, and
what the same rule chooses of them is compared with what it chooses of ours. Theirs is uniform 8.
The last line is JSON.
"""

import sys

import numpy as np

from benchmarks import outcome
from benchmarks.search_ground import (
    Trained,
    evaluator,
    searched,
    soundscapes,
    space,
    trained,
)
from qbee.export import tflite
from qbee.job.stages import FINE_TUNE_MAX_RATE
from qbee.quantize import convert
from qbee.quantize.scheme import Scheme, uniform
from qbee.search import choice
from qbee.search.trial import Trial
from qbee.train import metrics
from qbee.train.fit import TrainSettings, fit, predict

FLOAT_EPOCHS, TUNE_EPOCHS, TRIALS, RANDOM_TRIALS, SEED = 15, 10, 24, 200, 0
OBJECTIVES, TOP = ("loss", "tflite_bytes"), 3
LEAST_SAVING, MOST_LOST_POINTS = 0.35, 0.5


def tested(on: Trained, model) -> float:
    """F1 on the test windows at the threshold of the validation windows."""
    validation, test = (np.asarray(part) for part in (on.fold.validation, on.fold.test))
    labels = on.examples.labels
    found = metrics.probabilities(predict(model, on.examples, validation))
    threshold = metrics.best_threshold(labels[validation], found)
    found = metrics.probabilities(predict(model, on.examples, test))
    return metrics.evaluate(labels[test], found, threshold=threshold).f1 or 0.0


def tuned(on: Trained, scheme: Scheme):
    """Model of a scheme after fine-tuning."""
    model = convert.quantized_model(on.net, scheme, on.maps)
    settings = TrainSettings(epochs=TUNE_EPOCHS, max_rate=FINE_TUNE_MAX_RATE, epoch_windows=1024)
    fit(
        model,
        on.examples,
        train=on.fold.train,
        validation=on.fold.validation,
        settings=settings,
        seed=SEED,
    )
    return model


def bytes_of(model) -> int:
    """Length of a model's file."""
    return len(tflite.write(convert.to_fixed_point(model)).content)


def chosen(on: Trained, trials: list[Trial]) -> Trial:
    """The trial that wins by validation windows."""
    of = space()
    whole = choice.eligible(trials, fidelity=of.fidelity)
    floats = evaluator(on, of, seed=SEED).grounds(100)[0].float_metrics
    return choice.choose(whole, floats=floats, max_f1_drop=of.max_f1_drop)


def after_tuning(on: Trained, trials: list[Trial], winner: Trial):
    """The model that wins among the fine-tuned winner and its neighbours on the front."""
    measures = evaluator(on, space(), seed=SEED)
    ground = measures.grounds(100)[0]
    whole = choice.eligible(trials, fidelity=space().fidelity)
    models, again = {}, []
    for trial in choice.contenders(whole, winner, OBJECTIVES, TOP):
        models[trial.number] = tuned(on, trial.scheme)
        net = convert.to_fixed_point(models[trial.number])
        logits = predict(models[trial.number], on.examples, on.fold.validation)
        measured = measures.measured(
            [(ground, logits)],
            measures.cost_model.costs(net, trial.scheme),
            cpu_seconds=lambda: 0.0,
        )
        again.append(trial.model_copy(update={"measured": measured}))
        print(f"    fine-tuned: {shown(again[-1])}", flush=True)
    return models[chosen(on, again).number]


def shown(trial: Trial) -> str:
    """Validation F1 and bytes of a trial."""
    m = choice.measured_of(trial)
    return (
        f"{m.costs['tflite_bytes']:.0f} bytes, validation F1 {m.metrics['f1']:.3f} "
        f"average precision {m.metrics['average_precision']:.3f}, {trial.proposal.origin}"
    )


def compare(on: Trained, trials: list[Trial], winner: Trial) -> dict[str, tuple[float, int]]:
    """Test F1 and bytes by what it is."""
    models = {
        "uniform 8": tuned(on, uniform(on.net, bits=8)),
        "uniform 4": tuned(on, uniform(on.net, bits=4)),
        "winner": after_tuning(on, trials, winner),
    }
    found = {name: (tested(on, model), bytes_of(model)) for name, model in models.items()}
    found["float"] = (tested(on, on.model), 0)
    for name, (f1, size) in found.items():
        print(f"    {name:<10} F1 {f1:.3f} {size or '-':>8} bytes", flush=True)
    return found


def is_as_good_as_random(on: Trained, winner: Trial) -> bool:
    """Whether the rule chooses no smaller file, or no better one, among random schemes."""
    found = searched(on, space(), strategy="random", trials=RANDOM_TRIALS, seed=SEED)
    theirs = chosen(on, [timed.trial for timed in found])
    print(f"  of {RANDOM_TRIALS} random schemes: {shown(theirs)}", flush=True)
    ours, other = choice.measured_of(winner), choice.measured_of(theirs)
    is_smaller = other.costs["tflite_bytes"] < ours.costs["tflite_bytes"]
    return not is_smaller or ours.metrics["f1"] > other.metrics["f1"]


def main() -> None:
    """Measure, print a table and the JSON line; exit with 1 if a bar is missed."""
    rows, first = [], None
    with soundscapes() as (examples, by_location):
        for fold_ in by_location:
            on = trained("beenet1", examples, fold_, epochs=FLOAT_EPOCHS, seed=SEED)
            found = searched(on, space(), strategy="sensitivity", trials=TRIALS, seed=SEED)
            trials = [timed.trial for timed in found]
            winner = chosen(on, trials)
            print(f"  {fold_.name} left out; winner: {shown(winner)}", flush=True)
            rows.append(compare(on, trials, winner))
            first = first or (on, winner)
        is_good = is_as_good_as_random(*first) if "--random" in sys.argv and first else None
    mean = {name: np.mean([row[name] for row in rows], axis=0).tolist() for name in rows[0]}
    print("  mean: " + ", ".join(f"{n} F1 {f1:.3f} {b:.0f} B" for n, (f1, b) in mean.items()))
    saving = 1 - mean["winner"][1] / mean["uniform 8"][1]
    lost = 100 * (mean["uniform 8"][0] - mean["winner"][0])
    gained = 100 * (mean["winner"][0] - mean["uniform 4"][0])
    outcome.finish(
        "search_winner",
        ours=mean["winner"][1],
        theirs=mean["uniform 8"][1],
        unit="bytes of the .tflite, mean of three folds",
        missed={
            f"{100 * saving:.1f} % smaller than uniform 8, less than 35": saving < LEAST_SAVING,
            f"{lost:.2f} points below uniform 8, more than 0.5": lost > MOST_LOST_POINTS,
            f"{gained:.2f} points above uniform 4, not above 0": gained <= 0,
            "a random scheme is better": is_good is False,
        },
        f1={name: f1 for name, (f1, _) in mean.items()},
        points_lost=lost,
        points_above_uniform_4=gained,
    )


if __name__ == "__main__":
    main()
