"""Hodgkin-Huxley neurons as an opaque stage of a small classifier: currents in, rates out, integrated by scipy.

Handwritten digits (8 x 8, scikit-learn's) through a linear layer, a few neurons, and a linear layer; both linear layers
are on the host. The gradient of the first must come through the neurons. Two layers: separate neurons, and neurons
coupled with their neighbours by gap junctions, of which each one's rate follows all currents. All methods make the same
steps on the same minibatches; queries are counted.

    head alone       the first layer stays as it was drawn: what needs no gradient through neurons
    HZO              told that each neuron follows its own current (2 queries an image; not true of coupled ones),
                     or told nothing (2 a neuron)
    surrogate        forward through the neurons, backward by the slope of a measured curve of rate against current
    curve, deployed  trained on that curve alone, tested on the neurons
    rectifiers       the same network with rectifiers in place of neurons, on the host

A probe moves a current by `eps`, in uA/cm^2: rates jump where neurons begin to fire, so it is no infinitesimal.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import torch
from _descend import descend
from _firing import CURVE_QUERIES, Classifier, Curve, Surrogate, layer
from _result import Result, begun, go
from torch import Tensor, nn
from torch.nn import functional

from hzo_hil import Ledger
from hzo_hil.data import Dataset, load
from hzo_hil.ledger import recording
from hzo_hil.streams import torch_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL = {
    "seeds": 3, "train": 1000, "test": 300, "neurons": 8, "gaps": [0.0, 0.05], "batch": 32, "steps": 200, "lr": 1e-2,
    "eps": 0.5,
}  # fmt: skip
SMOKE = {"seeds": 1, "train": 8, "test": 4, "neurons": 2, "batch": 2, "steps": 1}
ALONE, SEPARATE, NOTHING = "head alone", "HZO, told that neurons are separate", "HZO, told nothing"
SURROGATE, DEPLOYED, RECTIFIERS = "surrogate", "curve, deployed", "rectifiers"


def main() -> None:
    torch.set_num_threads(1)
    result = begun("hodgkin_huxley", __doc__, FULL, SMOKE)
    data = load("digits", flatten=True, limit_train=result.config["train"], limit_test=result.config["test"])
    drawn = {}
    for gap in result.config["gaps"]:
        kind = "coupled neurons" if gap else "separate neurons"
        names = [ALONE, SEPARATE, *([NOTHING] if gap else []), SURROGATE, DEPLOYED, RECTIFIERS]
        found = {
            name: [
                result.part(
                    f"{kind}/{name}/{seed}",
                    lambda name=name, seed=seed, gap=gap: measured(name, gap, seed, result.config, data),
                )
                for seed in result.seeds
            ]
            for name in names
        }
        drawn[kind] = {name: [p["accuracy"] for p in parts] for name, parts in found.items()}
        _judged(result, kind, found)
    result.finish(lambda figure: _draw(figure, drawn))


def measured(name: str, gap: float, seed: int, config: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """Test accuracy on the neurons (of `RECTIFIERS`: on the host) after training, and the queries of training."""
    ledger = Ledger()
    with recording(ledger):
        model = _model(name, gap, seed, config)
        _train(model, seed, config, data)
    if name == DEPLOYED:
        model.neurons = layer(config["neurons"], gap, "dense", config["eps"], seed)
    with torch.no_grad():
        answers = model.eval()(_tensor(data.x_test)).argmax(dim=1)
    accuracy = float((answers == torch.as_tensor(data.y_test)).double().mean())
    return {"accuracy": accuracy, "queries": ledger.total.queries}


def _model(name: str, gap: float, seed: int, config: dict[str, Any]) -> Classifier:
    count, eps = config["neurons"], config["eps"]
    opaque = layer(count, gap, "dense" if name == NOTHING else "diagonal", eps, seed)
    neurons: nn.Module = opaque
    if name in (SURROGATE, DEPLOYED):
        curve = Curve.measured(opaque)
        neurons = Surrogate(opaque, curve) if name == SURROGATE else curve
    model = Classifier(64, count, 10, neurons if name != RECTIFIERS else nn.ReLU(), seed)
    model.encoder.requires_grad_(name != ALONE)
    return model


def _train(model: Classifier, seed: int, config: dict[str, Any], data: Dataset) -> None:
    images, labels = _tensor(data.x_train), torch.as_tensor(data.y_train)

    def loss(step: int) -> Tensor:
        random = torch_generator(seed, "neurons batch", step)
        rows = torch.randint(len(images), (config["batch"],), generator=random)
        return functional.cross_entropy(model(images[rows]), labels[rows])

    trained = [p for p in model.parameters() if p.requires_grad]
    descend(loss, torch.optim.Adam(trained, lr=config["lr"]), config["steps"])


def _tensor(images: Any) -> Tensor:
    return torch.as_tensor(images).double()


def _judged(result: Result, kind: str, found: dict[str, list[dict[str, Any]]]) -> None:
    best = NOTHING if NOTHING in found else SEPARATE
    accuracies = {name: [p["accuracy"] for p in parts] for name, parts in found.items()}
    for name, values in accuracies.items():
        result.row(
            f"{kind}: {name}", 100 * statistics.fmean(values), "% of test images", seeds=values,
            queries=found[name][0]["queries"],
        )  # fmt: skip
    for other, target in ((ALONE, ">= 0"), (SURROGATE, ">= -2"), (RECTIFIERS, None)):
        gained = 100 * statistics.fmean(a - b for a, b in zip(accuracies[best], accuracies[other], strict=True))
        result.row(f"{kind}: {best}", gained, "points", against=other, target=target)
    result.row(f"{kind}: curve", CURVE_QUERIES, "queries to measure it, in those of surrogate and deployed")


def _draw(figure: Figure, drawn: dict[str, dict[str, list[float]]]) -> None:
    """One panel a layer, a bar a method, a dot a seed."""
    for axes, (kind, accuracies) in zip(figure.subplots(1, len(drawn)), drawn.items(), strict=True):
        names = list(reversed(accuracies))
        axes.barh(names, [100 * statistics.fmean(accuracies[n]) for n in names], color="#0072B2", alpha=0.5)
        for place, name in enumerate(names):
            axes.plot([100 * a for a in accuracies[name]], [place] * len(accuracies[name]), "o", color="#D55E00", ms=3)
        axes.set_title(kind, fontsize=10)
        axes.set_xlabel("test accuracy, %")
        axes.tick_params(axis="y", labelsize=7)


if __name__ == "__main__":
    go(main)
