"""Plot run directories: KL against the multiply-adds that transforms cost online.

python docs/examples/plot_runs.py [RUNS] [PICTURE]        after, say, python run.py -m method=rtn,quarot,singlequant
"""

import sys

from matplotlib.figure import Figure

from sq.analysis import load


def main(runs: str = "runs", picture: str = "runs.svg") -> None:
    """A point for each finished run that was quantized."""
    frame = load(runs)
    text = next(name for name in frame if name.startswith("kl/"))
    frame = frame[frame.status == "finished"].dropna(subset=[text, "transform/multiply_adds"])

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="online multiply-adds a token", ylabel=f"{text}, nats a token", yscale="log")
    for (method, bits), rows in frame.groupby(["method", "bits"]):
        axes.scatter(rows["transform/multiply_adds"], rows[text], label=f"{method}, {bits}")
    axes.legend(fontsize="small")
    figure.savefig(picture)
    print(f"{len(frame)} runs in {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
